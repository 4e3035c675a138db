/* Sixteen lanes in two AVX2 registers. Every function here has its twin in lanes_avx512.h. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Rows that share a weight once it is in a register: the sums of one fill 8 of 16 registers. */
#define FLOAT_ROWS 1
#define WHOLE_ROWS 1

typedef struct { __m256 a, b; } vf;
typedef struct { __m256i a, b; } vi;

#define INLINE static inline __attribute__((always_inline))
#define EACH(kind, one, other) ((kind){(one), (other)})

INLINE vf vf_zero(void) { return EACH(vf, _mm256_setzero_ps(), _mm256_setzero_ps()); }
INLINE vf vf_all(float x) { return EACH(vf, _mm256_set1_ps(x), _mm256_set1_ps(x)); }
INLINE vf vf_load(const float *p) { return EACH(vf, _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void vf_store(float *p, vf x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
INLINE vf vf_load_half(const uint16_t *p) {
    return EACH(vf, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
INLINE vf vf_add(vf a, vf b) { return EACH(vf, _mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)); }
INLINE vf vf_sub(vf a, vf b) { return EACH(vf, _mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)); }
INLINE vf vf_mul(vf a, vf b) { return EACH(vf, _mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)); }
INLINE vf vf_div(vf a, vf b) { return EACH(vf, _mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)); }
INLINE vf vf_fma(vf a, vf b, vf c) {
    return EACH(vf, _mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b));
}
/* Of two numbers one of which is none, the second: so x stands second where it must survive. */
INLINE vf vf_max(vf a, vf b) { return EACH(vf, _mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)); }
INLINE vf vf_min(vf a, vf b) { return EACH(vf, _mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)); }
INLINE vf vf_abs(vf a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return EACH(vf, _mm256_andnot_ps(sign, a.a), _mm256_andnot_ps(sign, a.b));
}
INLINE vi vf_round(vf a) { /* to even; no number: -2^31 */
    return EACH(vi, _mm256_cvtps_epi32(a.a), _mm256_cvtps_epi32(a.b));
}
INLINE vf vf_whole(vi a) { return EACH(vf, _mm256_cvtepi32_ps(a.a), _mm256_cvtepi32_ps(a.b)); }

INLINE __m256 vf_scale_half(__m256 x, __m256i power) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(power, 23)));
}
/* x * 2^power, for powers that keep x a normal number */
INLINE vf vf_scale(vf x, vi power) {
    return EACH(vf, vf_scale_half(x.a, power.a), vf_scale_half(x.b, power.b));
}
/* Whole numbers x are kept in 16 bits, and multiplied in pairs. */
#define GROUP 2
typedef vi whole_sum;
typedef vi whole_input;

INLINE void whole_store(unsigned char *row, size_t inputs, size_t at, vi x) { /* saturates */
    (void)inputs;
    const __m256i mixed = _mm256_packs_epi32(x.a, x.b); /* quarters 0, 2, 1, 3 */
    _mm256_storeu_si256((__m256i *)(row + 2 * at), _mm256_permute4x64_epi64(mixed, 0xD8));
}
INLINE whole_input whole_load(const unsigned char *row, size_t inputs, size_t at) {
    (void)inputs;
    int32_t pair;
    memcpy(&pair, row + 2 * at, sizeof pair);
    return EACH(vi, _mm256_set1_epi32(pair), _mm256_set1_epi32(pair));
}
INLINE whole_sum whole_start(const int32_t *offsets) {
    (void)offsets;
    return EACH(vi, _mm256_setzero_si256(), _mm256_setzero_si256());
}
INLINE __m256i whole_add_half(__m256i sum, const int8_t *codes, __m256i pair) {
    const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)codes));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(weights, pair));
}
INLINE whole_sum whole_add(whole_sum sum, const int8_t *codes, whole_input x) {
    return EACH(vi, whole_add_half(sum.a, codes, x.a), whole_add_half(sum.b, codes + 16, x.b));
}
INLINE vi whole_total(whole_sum sum) { return sum; }

INLINE __m256 vf_low(vf a) { return a.a; }
INLINE __m256 vf_high(vf a) { return a.b; }
