/* Vectors of the widest registers that the compiler was told of, and bfloat16.
 *
 * Written once over GCC's vector extensions; only what those cannot say is an intrinsic. The library
 * is compiled once per instruction set, so LANES is a constant in all of it:
 *
 *     avx512, avx512_bf16  16      avx2  8      generic  4 (SSE2, NEON, ...)
 */
#ifndef SPLITFUSE_SIMD_H
#define SPLITFUSE_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
/* The same in memory, at any address. */
typedef float vec_mem __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t uvec_mem __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint16_t hvec_mem __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vec splat(float x) { return (vec){} + x; }
INLINE vec load(const float *p) { return *(const vec_mem *)p; }
INLINE void store(float *p, vec x) { *(vec_mem *)p = x; }

INLINE vec fma_vec(vec a, vec b, vec c) { return a * b + c; } /* contracted where there is FMA */

/* Where one of the two is NaN, the second. */
INLINE vec max_vec(vec a, vec b) {
#if LANES == 16
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    ivec a_wins = a > b;
    return (vec)((a_wins & (ivec)a) | (~a_wins & (ivec)b));
#endif
}

INLINE vec min_vec(vec a, vec b) {
#if LANES == 16
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return -max_vec(-a, -b);
#endif
}

/* x where the mask is all ones, else y. */
INLINE vec blend(ivec mask, vec x, vec y) { return (vec)((mask & (ivec)x) | (~mask & (ivec)y)); }

INLINE float sum_lanes(vec x) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
#endif
}

INLINE float max_lanes(vec x) {
#if LANES == 16
    return _mm512_reduce_max_ps((__m512)x);
#else
    float max = x[0];
    for (int i = 1; i < LANES; i++) max = x[i] > max ? x[i] : max;
    return max;
#endif
}

/* Whether any lane is; a NaN is not. */
INLINE int any_above(vec x, float limit) {
#if LANES == 16
    return _mm512_cmp_ps_mask((__m512)x, (__m512)splat(limit), _CMP_GT_OQ) != 0;
#elif LANES == 8
    return _mm256_movemask_ps((__m256)(x > limit)) != 0;
#else
    int32_t any = 0;
    ivec is_above = x > limit;
    for (int i = 0; i < LANES; i++) any |= is_above[i];
    return any != 0;
#endif
}

/* 0, 1, 2, ... */
INLINE ivec lane_numbers(void) {
    ivec n;
    for (int i = 0; i < LANES; i++) n[i] = i;
    return n;
}

/* ── bfloat16: the upper half of a float ───────────────────────────────────────────────────── */

INLINE float bf16_to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* GCC converts halves of 512 bits one after the other and joins them. */
INLINE uvec widen(hvec half) {
#if LANES == 16
    return (uvec)_mm512_cvtepu16_epi32((__m256i)half);
#else
    return __builtin_convertvector(half, uvec);
#endif
}

INLINE vec load_bf16(const bf16 *p) { return (vec)(widen(*(const hvec_mem *)p) << 16); }

/* Rounds to nearest, ties to even; NaN stays NaN. */
INLINE void store_bf16(bf16 *p, vec x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    uvec bits = (uvec)x;
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec quiet = (bits >> 16) | 0x40;
    uvec is_nan = (uvec)((bits & 0x7fffffff) > 0x7f800000);
    *(hvec_mem *)p = __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), hvec);
#endif
}

/* LANES pairs of neighbouring bfloat16, the first of a pair in the lower half of its lane. */
INLINE uvec load_pairs(const bf16 *p) { return *(const uvec_mem *)p; }

/* One pair in all lanes. */
INLINE uvec splat_pair(const bf16 *p) {
    uint32_t pair;
    memcpy(&pair, p, 4);
    return (uvec){} + pair;
}

/* sum + a.first * b.first + a.second * b.second by lane, in float32.
 * The instruction treats denormal numbers as zero and rounds once more; the sum differs by that. */
INLINE vec dot_pairs(vec sum, uvec a, uvec b) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum = fma_vec((vec)(a << 16), (vec)(b << 16), sum);
    return fma_vec((vec)(a & 0xffff0000), (vec)(b & 0xffff0000), sum);
#endif
}

/* ── functions ─────────────────────────────────────────────────────────────────────────────── */

/* 2^x with a relative error of 2e-7; x is taken as at least -126, where the result is 1e-38.
 * Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
INLINE vec exp2_vec(vec x) {
    x = min_vec(max_vec(x, splat(-126.0f)), splat(127.0f));
    vec shifted = x + 12582912.0f;
    vec f = x - (shifted - 12582912.0f); /* -0.5 .. 0.5 */
    vec p = splat(1.5403530e-4f);
    p = fma_vec(p, f, splat(1.3333558e-3f));
    p = fma_vec(p, f, splat(9.6181291e-3f));
    p = fma_vec(p, f, splat(5.5504109e-2f));
    p = fma_vec(p, f, splat(2.4022651e-1f));
    p = fma_vec(p, f, splat(6.9314718e-1f));
    p = fma_vec(p, f, splat(1.0f));
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

/* 2^x with a relative error of 8e-5, for what is rounded to bfloat16 next; zero where x is far below
 * -126. The polynomial is that of the least relative error over 0 .. 1. */
INLINE vec exp2_rough(vec x) {
#if LANES == 16
    vec f = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vec p = fma_vec(splat(0.07802452f), f, splat(0.22606719f));
    p = fma_vec(p, f, splat(0.6958335f));
    p = fma_vec(p, f, splat(0.9999252f));
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    return exp2_vec(x);
#endif
}

INLINE vec exp_vec(vec x) { return exp2_vec(x * 1.44269504f); }

#endif
