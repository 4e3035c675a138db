/* The arithmetic of the model, in sixteen lanes; compiled once for each instruction set.
 *
 * Compile with -ffp-contract=off: a product and a sum are rounded together only where vf_fma says so.
 */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include <math.h>
#include <time.h>

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

static size_t up_to(size_t count, size_t step) { return (count + step - 1) / step * step; }
static size_t padded(int32_t width) { return up_to((size_t)width, PANEL); }
static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* What one call works in: arrays of [rows, tokens, the widest padded width], and what one head of
 * one row needs. */
struct room {
    float *high, *low, *injection, *branch, *mixed, *inner, *steps, *head;
    unsigned char *whole; /* two bytes a number */
};

static size_t widest(const struct hrm_module *module) {
    size_t most = padded(module->width);
    for (int32_t b = 0; b < module->n_blocks; b++) {
        most = larger(most, (size_t)module->blocks[b].gate_up.outputs);
        if (module->heads) most = larger(most, (size_t)module->blocks[b].query_key_value.outputs);
    }
    return most;
}

static size_t head_width(const struct hrm_module *module) {
    return module->heads ? up_to((size_t)(module->width / module->heads), LANES) : 0;
}

/* Queries, keys and values of one head, scores of one token, and which tokens may be read. */
static size_t head_floats(const struct hrm_module *module) {
    const size_t tokens = (size_t)module->tokens;
    return up_to(3 * tokens * head_width(module) + 2 * up_to(tokens, LANES), PANEL);
}

/* How large the arrays of a room are, in numbers: for either of two modules. */
struct extent {
    size_t tokens, each, head;
};

static struct extent extent_of(const struct hrm_module *one, const struct hrm_module *other,
                               int32_t rows) {
    const size_t tokens = (size_t)rows * (size_t)one->tokens;
    return (struct extent){
        .tokens = up_to(tokens, PANEL),
        .each = larger(widest(one), widest(other)) * tokens,
        .head = larger(head_floats(one), head_floats(other)),
    };
}

size_t NAME(hrm_scratch_bytes)(const struct hrm_module *one, const struct hrm_module *other,
                               int32_t rows) {
    const struct extent extent = extent_of(one, other, rows);
    return (6 * extent.each + extent.tokens + extent.head) * sizeof(float) + 2 * extent.each;
}

static struct room room_in(struct extent extent, void *scratch) {
    const size_t each = extent.each;
    float *start = scratch;
    struct room room = {
        .high = start,
        .low = start + each,
        .injection = start + 2 * each,
        .branch = start + 3 * each,
        .mixed = start + 4 * each,
        .inner = start + 5 * each,
        .steps = start + 6 * each,
        .head = start + 6 * each + extent.tokens,
    };
    room.whole = (unsigned char *)(room.head + extent.head);
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

/* x = rms_norm(x + y), token by token; the padding of x and y is zero and stays so. */
static void add_and_norm(const struct hrm_module *module, size_t tokens, float *x,
                         const float *y) {
    const size_t wide = padded(module->width);
    for (size_t token = 0; token < tokens; token++, x += wide, y += wide) {
        vf squares = vf_zero();
        for (size_t i = 0; i < wide; i += LANES) {
            const vf sum = vf_add(vf_load(x + i), vf_load(y + i));
            squares = vf_fma(sum, sum, squares);
            vf_store(x + i, sum);
        }
        const float mean = sum_of(squares) / (float)module->width;
        const vf factor = vf_all(1.0f / sqrtf(mean + module->epsilon));
        for (size_t i = 0; i < wide; i += LANES) vf_store(x + i, vf_mul(vf_load(x + i), factor));
    }
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

/* Copy what one head has of every token, turned by its position if there are tables. */
static void gather(const float *from, size_t stride, size_t tokens, size_t width,
                   const float *cosines, const float *sines, float *to) {
    const size_t wide = up_to(width, LANES), half = width / 2;
    memset(to, 0, tokens * wide * sizeof(float));
    for (size_t token = 0; token < tokens; token++, from += stride, to += wide) {
        if (!cosines) {
            memcpy(to, from, width * sizeof(float));
            continue;
        }
        const float *cosine = cosines + token * width, *sine = sines + token * width;
        for (size_t i = 0; i < half; i++) {
            to[i] = from[i] * cosine[i] - from[half + i] * sine[i];
            to[half + i] = from[half + i] * cosine[half + i] + from[i] * sine[half + i];
        }
    }
}

/* Turn scores [tokens] into shares of those that are present, which is 1 or 0 in each lane. */
static void softmax(float *scores, const float *present, size_t tokens) {
    const size_t wide = up_to(tokens, LANES);
    float most = -INFINITY;
    for (size_t i = 0; i < tokens; i++)
        if (present[i] > 0.0f && !(scores[i] <= most)) most = scores[i];
    vf total = vf_zero();
    for (size_t i = 0; i < wide; i += LANES) {
        const vf share = exp_of(vf_sub(vf_load(scores + i), vf_all(most)));
        const vf shown = vf_mul(share, vf_load(present + i));
        total = vf_add(total, shown);
        vf_store(scores + i, shown);
    }
    const vf per = vf_all(1.0f / sum_of(total));
    for (size_t i = 0; i < wide; i += LANES) vf_store(scores + i, vf_mul(vf_load(scores + i), per));
}

/* One head of one row: from joined queries, keys and values to its part of mixed [tokens, width];
 * room is that of one head. */
static void attend(const struct hrm_module *module, size_t head, const float *joined, size_t stride,
                   const float *present, float *room, float *mixed) {
    const size_t tokens = (size_t)module->tokens, whole = (size_t)module->width;
    const size_t width = whole / (size_t)module->heads, wide = up_to(width, LANES);
    const float *start = joined + head * width;
    float *queries = room, *keys = room + tokens * wide, *values = keys + tokens * wide;
    float *scores = values + tokens * wide;
    gather(start, stride, tokens, width, module->cosines, module->sines, queries);
    gather(start + whole, stride, tokens, width, module->cosines, module->sines, keys);
    gather(start + 2 * whole, stride, tokens, width, NULL, NULL, values);
    const float per = 1.0f / sqrtf((float)width);
    memset(scores, 0, up_to(tokens, LANES) * sizeof(float));
    for (size_t token = 0; token < tokens; token++) {
        for (size_t other = 0; other < tokens; other++) {
            vf sum = vf_zero();
            for (size_t i = 0; i < wide; i += LANES)
                sum = vf_fma(vf_load(queries + token * wide + i), vf_load(keys + other * wide + i),
                             sum);
            scores[other] = sum_of(sum) * per;
        }
        softmax(scores, present, tokens);
        float said[LANES];
        for (size_t i = 0; i < wide; i += LANES) {
            vf sum = vf_zero();
            for (size_t other = 0; other < tokens; other++)
                sum = vf_fma(vf_all(scores[other]), vf_load(values + other * wide + i), sum);
            vf_store(said, sum);
            const size_t count = width - i < LANES ? width - i : LANES;
            memcpy(mixed + token * padded(module->width) + head * width + i, said,
                   count * sizeof(float));
        }
    }
}

static void attention(const struct hrm_module *module, const struct hrm_block *block, size_t rows,
                      const unsigned char *present, float *x, const struct room *room) {
    const size_t tokens = (size_t)module->tokens, wide = padded(module->width);
    const size_t stride = (size_t)block->query_key_value.outputs;
    float *shown = room->head + 3 * tokens * head_width(module) + up_to(tokens, LANES);
    product(&block->query_key_value, rows * tokens, x, room->inner, room);
    memset(room->mixed, 0, rows * tokens * wide * sizeof(float));
    memset(shown, 0, up_to(tokens, LANES) * sizeof(float));
    for (size_t row = 0; row < rows; row++) {
        for (size_t i = 0; i < tokens; i++)
            shown[i] = !present || present[row * tokens + i] ? 1.0f : 0.0f;
        for (size_t head = 0; head < (size_t)module->heads; head++)
            attend(module, head, room->inner + row * tokens * stride, stride, shown, room->head,
                   room->mixed + row * tokens * wide);
    }
    product(&block->out, rows * tokens, room->mixed, room->branch, room);
    add_and_norm(module, rows * tokens, x, room->branch);
}

static void feed_forward(const struct hrm_module *module, const struct hrm_block *block,
                         size_t tokens, float *x, const struct room *room) {
    product(&block->gate_up, tokens, x, room->inner, room);
    gate(room->inner, tokens, (size_t)block->down.inputs);
    product(&block->down, tokens, room->inner, room->branch, room);
    add_and_norm(module, tokens, x, room->branch);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Add the time since then to a place, if there is one; return what time it is. */
static int64_t note(int64_t *spent_ns, size_t place, int64_t since_ns) {
    if (!spent_ns) return 0;
    const int64_t now = now_ns();
    spent_ns[place] += now - since_ns;
    return now;
}

/* present: [rows, tokens], or NULL where every token may be read. */
static void stack(const struct hrm_module *module, size_t rows, const unsigned char *present,
                  float *x, const struct room *room) {
    int64_t since_ns = module->spent_ns ? now_ns() : 0;
    for (size_t b = 0; b < (size_t)module->n_blocks; b++) {
        const struct hrm_block *block = module->blocks + b;
        if (module->heads) attention(module, block, rows, present, x, room);
        since_ns = note(module->spent_ns, 2 * b, since_ns);
        feed_forward(module, block, rows * (size_t)module->tokens, x, room);
        since_ns = note(module->spent_ns, 2 * b + 1, since_ns);
    }
}

void NAME(hrm_cycle)(const struct hrm_core *core, const struct hrm_step *step) {
    const struct hrm_module *high = &core->high, *low = &core->low;
    const size_t rows = (size_t)step->rows, tokens = rows * (size_t)high->tokens;
    const struct room room = room_in(extent_of(high, low, step->rows), step->scratch);
    pad(step->high, tokens, high->width, room.high);
    pad(step->low, tokens, low->width, room.low);
    pad(step->encoded, tokens, high->width, room.branch);
    add(room.branch, room.high, tokens * padded(high->width));
    product(&low->from_other, tokens, room.branch, room.injection, &room);
    for (int32_t t = 0; t < core->timesteps; t++) {
        add(room.low, room.injection, tokens * padded(low->width));
        stack(low, rows, NULL, room.low, &room);
    }
    product(&high->from_other, tokens, room.low, room.branch, &room);
    add(room.high, room.branch, tokens * padded(high->width));
    stack(high, rows, NULL, room.high, &room);
    unpad(room.high, tokens, high->width, step->next_high);
    unpad(room.low, tokens, low->width, step->next_low);
}

void NAME(hrm_read)(const struct hrm_module *encoder, const struct hrm_reading *reading) {
    const size_t rows = (size_t)reading->rows, tokens = rows * (size_t)encoder->tokens;
    const struct room room =
        room_in(extent_of(encoder, encoder, reading->rows), reading->scratch);
    pad(reading->tokens, tokens, encoder->width, room.high);
    stack(encoder, rows, reading->present, room.high, &room);
    unpad(room.high, tokens, encoder->width, reading->read);
}

void NAME(hrm_float_product)(const struct hrm_matrix *m, int32_t rows, const float *x, float *y) {
    float_product(m, (size_t)rows, x, y);
}
