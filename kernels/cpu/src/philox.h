/* Philox4x32-10 for LANES counters at once; see kernels/philox.py. */
#ifndef SPLITFUSE_PHILOX_H
#define SPLITFUSE_PHILOX_H

#include "simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { PHILOX_ROUNDS = 10, IDS_PER_CALL = 4 };

/* 64-bit lanes of which the lower halves count; the upper ones may hold anything. */
typedef uint64_t qvec __attribute__((vector_size(4 * LANES)));

/* What the random numbers of one token belong to. */
typedef struct {
    uint64_t seed, position;
} philox_stream;

/* Products of the lower halves. */
INLINE qvec multiply_lower(qvec a, qvec b) {
#if defined(__AVX512F__)
    return (qvec)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (qvec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (qvec)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

INLINE qvec splat64(uint64_t x) { return (qvec){} + x; }

INLINE void philox_round(qvec c[4], uint32_t key_0, uint32_t key_1) {
    qvec product_0 = multiply_lower(c[0], splat64(0xD2511F53));
    qvec product_1 = multiply_lower(c[2], splat64(0xCD9E8D57));
    c[0] = (product_1 >> 32) ^ c[1] ^ key_0;
    c[2] = (product_0 >> 32) ^ c[3] ^ key_1;
    c[1] = product_1;
    c[3] = product_0;
}

INLINE void begin_counters(qvec c[4], uint64_t position, qvec groups) {
    c[0] = splat64(position & 0xffffffff);
    c[1] = splat64(position >> 32);
    c[2] = groups;
    c[3] = splat64(0);
}

/* words[w] lane j: word w of group first_group + j, which is for token id 4 * (first_group + j) + w.
 * Lanes are worked on in two halves, even and odd: a product of two words is as wide as two. */
INLINE void philox_words(philox_stream stream, uint32_t first_group, uvec words[4]) {
    qvec pairs = (qvec)(lane_numbers() + (int32_t)first_group);
    qvec even[4], odd[4];
    begin_counters(even, stream.position, pairs & 0xffffffff);
    begin_counters(odd, stream.position, pairs >> 32);
    uint32_t key_0 = (uint32_t)stream.seed, key_1 = (uint32_t)(stream.seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        philox_round(even, key_0, key_1);
        philox_round(odd, key_0, key_1);
        key_0 += 0x9E3779B9;
        key_1 += 0xBB67AE85;
    }
    for (int w = 0; w < 4; w++) words[w] = (uvec)((even[w] & 0xffffffff) | (odd[w] << 32));
}

#endif
