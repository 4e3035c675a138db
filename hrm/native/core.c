/* The arithmetic of the core, in sixteen lanes; compiled once for each instruction set.
 *
 * Compile with -ffp-contract=off: a product and a sum are rounded together only where vf_fma says so.
 */
#include <math.h>

#include "core.h"

#if defined(HRM_AVX512)
#include "lanes_avx512.h"
#define NAME(name) name##_avx512
#else
#include "lanes_avx2.h"
#define NAME(name) name##_avx2
#endif

#define LANES 16
#define VECTORS (PANEL / LANES)

/* ---- Sums across lanes: always the same tree. ---- */

INLINE float sum_of(vf x) {
    const __m256 eight = _mm256_add_ps(vf_low(x), vf_high(x));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float max_of(vf x) {
    const __m256 eight = _mm256_max_ps(vf_low(x), vf_high(x));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* ---- Functions of single numbers. ---- */

/* e^x to 2 units in the last place, for x cut to +-87; the polynomial is that of Cephes' expf. */
INLINE vf exp_of(vf x) {
    x = vf_max(vf_all(-87.0f), vf_min(vf_all(87.0f), x));
    const vi power = vf_round(vf_mul(x, vf_all(1.44269504088896341f)));
    const vf whole = vf_whole(power);
    vf r = vf_fma(whole, vf_all(-0.693359375f), x);
    r = vf_fma(whole, vf_all(2.12194440e-4f), r);
    vf sum = vf_all(1.9875691500e-4f);
    sum = vf_fma(sum, r, vf_all(1.3981999507e-3f));
    sum = vf_fma(sum, r, vf_all(8.3334519073e-3f));
    sum = vf_fma(sum, r, vf_all(4.1665795894e-2f));
    sum = vf_fma(sum, r, vf_all(1.6666665459e-1f));
    sum = vf_fma(sum, r, vf_all(5.0000001201e-1f));
    sum = vf_add(vf_fma(sum, vf_mul(r, r), r), vf_all(1.0f));
    return vf_scale(sum, power);
}

INLINE vf silu_of(vf x) {
    const vf one = vf_all(1.0f);
    return vf_div(x, vf_add(one, exp_of(vf_sub(vf_zero(), x))));
}

/* ---- Matrix products: y [rows, outputs] of x [rows, inputs]. ---- */

/* One panel of outputs for `rows` (a constant after inlining) rows of x. */
INLINE void float_panel(const struct hrm_matrix *m, size_t at, int rows, const float *x, float *y) {
    const size_t inputs = (size_t)m->inputs, outputs = (size_t)m->outputs;
    const float *single = (const float *)m->panels + at * inputs;
    const uint16_t *half = (const uint16_t *)m->panels + at * inputs;
    vf sums[FLOAT_ROWS][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < VECTORS; v++) sums[row][v] = vf_zero();
    for (size_t k = 0; k < inputs; k++) {
        vf w[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            const size_t place = k * PANEL + (size_t)v * LANES;
            w[v] = m->format == HRM_F32 ? vf_load(single + place) : vf_load_half(half + place);
        }
        for (int row = 0; row < rows; row++) {
            const vf input = vf_all(x[(size_t)row * inputs + k]);
            for (int v = 0; v < VECTORS; v++) sums[row][v] = vf_fma(w[v], input, sums[row][v]);
        }
    }
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < VECTORS; v++)
            vf_store(y + (size_t)row * outputs + at + (size_t)v * LANES, sums[row][v]);
}

/* The same for whole numbers x, of which row r stands for steps[r] * x. */
INLINE void whole_panel(const struct hrm_matrix *m, size_t at, int rows, const unsigned char *x,
                        const float *steps, float *y) {
    const size_t inputs = (size_t)m->inputs, outputs = (size_t)m->outputs;
    const int8_t *codes = (const int8_t *)m->panels + at * inputs;
    whole_sum sums[WHOLE_ROWS][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < VECTORS; v++)
            sums[row][v] = whole_start(m->offsets + at + (size_t)v * LANES);
    for (size_t k = 0; k < inputs; k += GROUP) {
        for (int row = 0; row < rows; row++) {
            const whole_input input = whole_load(x + (size_t)row * 2 * inputs, inputs, k);
            for (int v = 0; v < VECTORS; v++)
                sums[row][v] = whole_add(
                    sums[row][v], codes + k * PANEL + (size_t)v * LANES * GROUP, input);
        }
    }
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < VECTORS; v++) {
            const size_t place = at + (size_t)v * LANES;
            const vf sum = vf_whole(whole_total(sums[row][v]));
            const vf scaled = vf_mul(sum, vf_load(m->scales + place));
            vf_store(y + (size_t)row * outputs + place, vf_mul(scaled, vf_all(steps[row])));
        }
}

/* Round a row to whole numbers of at most `peak`, two bytes each; return what a 1 stands for. */
static float rounded(const float *x, size_t width, int32_t peak, unsigned char *whole) {
    vf largest = vf_zero();
    for (size_t i = 0; i < width; i += LANES) largest = vf_max(largest, vf_abs(vf_load(x + i)));
    const float size = max_of(largest);
    const float per = size > 1e-30f ? (float)peak / size : 0.0f;
    for (size_t i = 0; i < width; i += LANES)
        whole_store(whole, width, i, vf_round(vf_mul(vf_load(x + i), vf_all(per))));
    return size > 1e-30f ? size / (float)peak : 0.0f;
}

static void float_product(const struct hrm_matrix *m, size_t rows, const float *x, float *y) {
    const size_t inputs = (size_t)m->inputs, outputs = (size_t)m->outputs;
    for (size_t at = 0; at < outputs; at += PANEL) {
        size_t row = 0;
        for (; row + FLOAT_ROWS <= rows; row += FLOAT_ROWS)
            float_panel(m, at, FLOAT_ROWS, x + row * inputs, y + row * outputs);
        for (; row < rows; row++) float_panel(m, at, 1, x + row * inputs, y + row * outputs);
    }
}

static void whole_product(const struct hrm_matrix *m, size_t rows, const float *x, float *y,
                          unsigned char *whole, float *steps) {
    const size_t inputs = (size_t)m->inputs, outputs = (size_t)m->outputs;
    for (size_t row = 0; row < rows; row++)
        steps[row] = rounded(x + row * inputs, inputs, m->peak, whole + row * 2 * inputs);
    for (size_t at = 0; at < outputs; at += PANEL) {
        size_t row = 0;
        for (; row + WHOLE_ROWS <= rows; row += WHOLE_ROWS)
            whole_panel(m, at, WHOLE_ROWS, whole + row * 2 * inputs, steps + row,
                        y + row * outputs);
        for (; row < rows; row++)
            whole_panel(m, at, 1, whole + row * 2 * inputs, steps + row, y + row * outputs);
    }
}

/* ---- The model. ---- */

static size_t padded(int32_t width) { return ((size_t)width + PANEL - 1) / PANEL * PANEL; }

/* What one call works in; every array is [rows, the widest padded width] or smaller. */
struct room {
    float *high, *low, *injection, *branch, *inner, *steps;
    unsigned char *whole; /* two bytes a number */
};

static size_t widest(const struct hrm_core *core) {
    const struct hrm_module *modules[2] = {&core->high, &core->low};
    size_t most = 0;
    for (int i = 0; i < 2; i++) {
        const size_t width = padded(modules[i]->width);
        if (width > most) most = width;
        for (int32_t b = 0; b < modules[i]->n_blocks; b++) {
            const size_t inner = (size_t)modules[i]->blocks[b].gate_up.outputs;
            if (inner > most) most = inner;
        }
    }
    return most;
}

size_t NAME(hrm_scratch_bytes)(const struct hrm_core *core, int32_t rows) {
    const size_t each = widest(core) * (size_t)rows;
    return each * (5 * sizeof(float) + 2) + padded(rows) * sizeof(float);
}

static struct room room_in(const struct hrm_core *core, int32_t rows, void *scratch) {
    const size_t each = widest(core) * (size_t)rows;
    float *start = scratch;
    struct room room = {
        .high = start,
        .low = start + each,
        .injection = start + 2 * each,
        .branch = start + 3 * each,
        .inner = start + 4 * each,
        .steps = start + 5 * each,
    };
    room.whole = (unsigned char *)(room.steps + padded(rows));
    return room;
}

static void pad(const float *from, size_t rows, int32_t width, float *to) {
    const size_t wide = padded(width);
    memset(to, 0, rows * wide * sizeof(float));
    for (size_t row = 0; row < rows; row++)
        memcpy(to + row * wide, from + row * (size_t)width, (size_t)width * sizeof(float));
}

static void unpad(const float *from, size_t rows, int32_t width, float *to) {
    const size_t wide = padded(width);
    for (size_t row = 0; row < rows; row++)
        memcpy(to + row * (size_t)width, from + row * wide, (size_t)width * sizeof(float));
}

static void add(float *x, const float *y, size_t count) {
    for (size_t i = 0; i < count; i += LANES) vf_store(x + i, vf_add(vf_load(x + i), vf_load(y + i)));
}

/* x = rms_norm(x + y), one row; the padding of x and y is zero and stays so. */
static void add_and_norm(float *x, const float *y, int32_t width, float epsilon) {
    const size_t wide = padded(width);
    vf squares = vf_zero();
    for (size_t i = 0; i < wide; i += LANES) {
        const vf sum = vf_add(vf_load(x + i), vf_load(y + i));
        squares = vf_fma(sum, sum, squares);
        vf_store(x + i, sum);
    }
    const float mean = sum_of(squares) / (float)width;
    const vf factor = vf_all(1.0f / sqrtf(mean + epsilon));
    for (size_t i = 0; i < wide; i += LANES) vf_store(x + i, vf_mul(vf_load(x + i), factor));
}

/* gated = silu(gate) * up for rows of [gate, up], in place: row r of the result is [inner] wide. */
static void gate(float *both, size_t rows, size_t inner) {
    for (size_t row = 0; row < rows; row++) {
        const float *from = both + row * 2 * inner;
        float *to = both + row * inner;
        for (size_t i = 0; i < inner; i += LANES)
            vf_store(to + i, vf_mul(silu_of(vf_load(from + i)), vf_load(from + inner + i)));
    }
}

static void product(const struct hrm_matrix *m, size_t rows, const float *x, float *y,
                    const struct room *room) {
    if (m->format == HRM_I8)
        whole_product(m, rows, x, y, room->whole, room->steps);
    else
        float_product(m, rows, x, y);
}

static void stack(const struct hrm_module *module, size_t rows, float epsilon, float *x,
                  const struct room *room) {
    const size_t wide = padded(module->width);
    for (int32_t b = 0; b < module->n_blocks; b++) {
        const struct hrm_block *block = module->blocks + b;
        product(&block->gate_up, rows, x, room->inner, room);
        gate(room->inner, rows, (size_t)block->down.inputs);
        product(&block->down, rows, room->inner, room->branch, room);
        for (size_t row = 0; row < rows; row++)
            add_and_norm(x + row * wide, room->branch + row * wide, module->width, epsilon);
    }
}

void NAME(hrm_cycle)(const struct hrm_core *core, const struct hrm_step *step) {
    const size_t rows = (size_t)step->rows;
    const size_t high_wide = padded(core->high.width), low_wide = padded(core->low.width);
    const struct room room = room_in(core, step->rows, step->scratch);
    pad(step->high, rows, core->high.width, room.high);
    pad(step->low, rows, core->low.width, room.low);
    pad(step->encoded, rows, core->high.width, room.branch);
    add(room.branch, room.high, rows * high_wide);
    product(&core->low.from_other, rows, room.branch, room.injection, &room);
    for (int32_t t = 0; t < core->timesteps; t++) {
        add(room.low, room.injection, rows * low_wide);
        stack(&core->low, rows, core->epsilon, room.low, &room);
    }
    product(&core->high.from_other, rows, room.low, room.branch, &room);
    add(room.high, room.branch, rows * high_wide);
    stack(&core->high, rows, core->epsilon, room.high, &room);
    unpad(room.high, rows, core->high.width, step->next_high);
    unpad(room.low, rows, core->low.width, step->next_low);
}

void NAME(hrm_float_product)(const struct hrm_matrix *m, int32_t rows, const float *x, float *y) {
    float_product(m, (size_t)rows, x, y);
}
