/* Sixteen lanes in one AVX-512 register. Every function here has its twin in lanes_avx2.h. */
#include <immintrin.h>
#include <stdint.h>

#define ROWS_AT_ONCE 4 /* rows that share a weight once it is in a register: 16 sums of 32 */

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

INLINE vi vi_zero(void) { return _mm512_setzero_si512(); }
INLINE vi vi_all(int32_t x) { return _mm512_set1_epi32(x); }
INLINE void vi_store_short(int16_t *p, vi a) { /* saturates */
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(a));
}
/* x * 2^power, for powers that keep x a normal number */
INLINE vf vf_scale(vf x, vi power) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(power, 23)));
}
/* sums[i] + codes[i][0] * pair[0] + codes[i][1] * pair[1], pair: two 16-bit numbers in each lane */
INLINE vi vi_dot(vi sums, const int8_t *codes, vi pair) {
    const vi weights = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)codes));
    return _mm512_dpwssd_epi32(sums, weights, pair);
}

INLINE __m256 vf_low(vf a) { return _mm512_castps512_ps256(a); }
INLINE __m256 vf_high(vf a) {
    return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
}
