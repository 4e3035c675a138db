/* Sixteen lanes in one AVX-512 register. Every function here has its twin in lanes_avx2.h. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Rows that share a weight once it is in a register: their sums fill 16 of 32 registers. */
#define FLOAT_ROWS 4
#define WHOLE_ROWS 2

typedef __m512 vf;
typedef __m512i vi;

#define INLINE static inline __attribute__((always_inline))

INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_all(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf vf_load_half(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
/* Of two numbers one of which is none, the second: so x stands second where it must survive. */
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
INLINE vi vf_round(vf a) { return _mm512_cvtps_epi32(a); } /* to even; no number: -2^31 */
INLINE vf vf_whole(vi a) { return _mm512_cvtepi32_ps(a); }

/* x * 2^power, for powers that keep x a normal number */
INLINE vf vf_scale(vf x, vi power) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(power, 23)));
}
/* Whole numbers x are kept as the two bytes of x + 2^15, in two planes, because the instruction
 * multiplies bytes: sum(w * x) = 2^8 sum(w * upper) + sum(w * lower) - 2^15 sum(w), modulo 2^32. */
#define GROUP 4
typedef struct { vi upper, lower; } whole_sum;
typedef struct { vi upper, lower; } whole_input;

INLINE void whole_store(unsigned char *row, size_t inputs, size_t at, vi x) {
    const vi low = _mm512_set1_epi32(-32768), high = _mm512_set1_epi32(32767);
    const vi shifted = _mm512_sub_epi32(_mm512_max_epi32(low, _mm512_min_epi32(high, x)), low);
    const __m128i upper = _mm512_cvtepi32_epi8(_mm512_srli_epi32(shifted, 8));
    _mm_storeu_si128((__m128i *)(row + at), upper);
    _mm_storeu_si128((__m128i *)(row + inputs + at), _mm512_cvtepi32_epi8(shifted));
}
INLINE whole_input whole_load(const unsigned char *row, size_t inputs, size_t at) {
    int32_t upper, lower;
    memcpy(&upper, row + at, sizeof upper);
    memcpy(&lower, row + inputs + at, sizeof lower);
    return (whole_input){_mm512_set1_epi32(upper), _mm512_set1_epi32(lower)};
}
INLINE whole_sum whole_start(const int32_t *offsets) {
    return (whole_sum){_mm512_setzero_si512(), _mm512_loadu_si512(offsets)};
}
INLINE whole_sum whole_add(whole_sum sum, const int8_t *codes, whole_input x) {
    const vi weights = _mm512_loadu_si512(codes);
    return (whole_sum){_mm512_dpbusd_epi32(sum.upper, x.upper, weights),
                       _mm512_dpbusd_epi32(sum.lower, x.lower, weights)};
}
INLINE vi whole_total(whole_sum sum) {
    return _mm512_add_epi32(_mm512_slli_epi32(sum.upper, 8), sum.lower);
}

INLINE __m256 vf_low(vf a) { return _mm512_castps512_ps256(a); }
INLINE __m256 vf_high(vf a) {
    return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
}
