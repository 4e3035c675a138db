/* What Python calls: the version of the interface, what this processor can do, and the core in it. */
#include <immintrin.h>
#include <math.h>

#include "core.h"

enum { NONE = 0, AVX2 = 1, AVX512 = 2 };
#define FLUSH_DENORMALS 0x8040u /* results and inputs: FTZ and DAZ of MXCSR */

size_t hrm_scratch_bytes_avx2(const struct hrm_module *, const struct hrm_module *, int32_t);
void hrm_read_avx2(const struct hrm_module *, const struct hrm_reading *);
void hrm_read_avx512(const struct hrm_module *, const struct hrm_reading *);
void hrm_cycle_avx2(const struct hrm_core *, const struct hrm_step *);
void hrm_cycle_avx512(const struct hrm_core *, const struct hrm_step *);
void hrm_float_product_avx2(const struct hrm_matrix *, int32_t, const float *, float *);
void hrm_float_product_avx512(const struct hrm_matrix *, int32_t, const float *, float *);

uint32_t hrm_abi(void) { return HRM_ABI; }

/* The best level that this processor, and the system for its registers, supports. */
int32_t hrm_best_level(void) {
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
          __builtin_cpu_supports("f16c")))
        return NONE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        return AVX512;
    return AVX2;
}

/* What a call needs that runs either of two modules of equal token count. */
size_t hrm_scratch_bytes(const struct hrm_module *one, const struct hrm_module *other,
                         int32_t rows) {
    return hrm_scratch_bytes_avx2(one, other, rows);
}

/* |after - before| / |after| for each row of [rows, width]. */
void hrm_residual(int32_t rows, int32_t width, const float *before, const float *after,
                  float *ratios) {
    for (size_t row = 0; row < (size_t)rows; row++) {
        double change = 0.0, size = 0.0;
        for (size_t i = row * (size_t)width; i < (row + 1) * (size_t)width; i++) {
            const double moved = (double)after[i] - (double)before[i];
            change += moved * moved;
            size += (double)after[i] * (double)after[i];
        }
        const double length = sqrt(size);
        ratios[row] = (float)(sqrt(change) / (length > 1e-12 ? length : 1e-12));
    }
}

/* Run one cycle; the caller's thread keeps its own treatment of denormals. */
void hrm_cycle(int32_t level, const struct hrm_core *core, const struct hrm_step *step) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_DENORMALS);
    if (level == AVX512)
        hrm_cycle_avx512(core, step);
    else
        hrm_cycle_avx2(core, step);
    _mm_setcsr(before);
    const int32_t tokens = core->high.tokens;
    hrm_residual(step->rows, tokens * core->high.width, step->high, step->next_high, step->ratios);
    hrm_residual(step->rows, tokens * core->low.width, step->low, step->next_low,
                 step->ratios + step->rows);
}

/* Run the encoder's blocks over tokens that are already there. */
void hrm_read(int32_t level, const struct hrm_module *encoder, const struct hrm_reading *reading) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_DENORMALS);
    if (level == AVX512)
        hrm_read_avx512(encoder, reading);
    else
        hrm_read_avx2(encoder, reading);
    _mm_setcsr(before);
}

/* y [rows, outputs] of x [rows, inputs], both padded, for a matrix of floats. */
void hrm_float_product(int32_t level, const struct hrm_matrix *m, int32_t rows, const float *x,
                       float *y) {
    if (level == AVX512)
        hrm_float_product_avx512(m, rows, x, y);
    else
        hrm_float_product_avx2(m, rows, x, y);
}
