/* Activation functions by vector, and rows of either dtype. */
#ifndef SPLITFUSE_POINTWISE_H
#define SPLITFUSE_POINTWISE_H

#include "simd.h"
#include "splitfuse_cpu.h"

INLINE vec sigmoid_vec(vec x) { return 1.0f / (1.0f + exp_vec(-x)); }

INLINE vec tanh_vec(vec x) { return 2.0f * sigmoid_vec(2.0f * x) - 1.0f; }

/* Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error 1.5e-7. */
INLINE vec erf_vec(vec x) {
    ivec sign = (ivec)x & (int32_t)0x80000000;
    vec a = (vec)((ivec)x ^ sign);
    vec t = 1.0f / (1.0f + 0.3275911f * a);
    vec p = splat(1.061405429f);
    p = fma_vec(p, t, splat(-1.453152027f));
    p = fma_vec(p, t, splat(1.421413741f));
    p = fma_vec(p, t, splat(-0.284496736f));
    p = fma_vec(p, t, splat(0.254829592f));
    vec y = 1.0f - p * t * exp_vec(-a * a);
    return (vec)((ivec)y ^ sign);
}

INLINE vec activate_vec(int32_t kind, vec x) {
    switch (kind) {
    case SF_RELU: return max_vec(x, splat(0.0f));
    case SF_SILU: return x * sigmoid_vec(x);
    case SF_GELU: return 0.5f * x * (1.0f + erf_vec(0.70710678f * x));
    case SF_GELU_TANH:
        return 0.5f * x * (1.0f + tanh_vec(0.79788456f * (x + 0.044715f * x * x * x)));
    default: return x;
    }
}

INLINE int64_t element_bytes(int32_t dtype) { return dtype == SF_BFLOAT16 ? 2 : 4; }

INLINE char *row_of(const sf_buffer *buffer, int64_t row) {
    return (char *)buffer->data + row * buffer->stride * element_bytes(buffer->dtype);
}

/* LANES elements of a row from `column` on. Rows are padded, so that the last load of a row may
 * reach beyond its width (never beyond its stride). */
INLINE vec load_element(const char *row, int32_t dtype, int32_t column) {
    if (dtype == SF_BFLOAT16) return load_bf16((const bf16 *)row + column);
    return load((const float *)row + column);
}

/* Store `count` of the lanes: padding must stay zero. */
INLINE void store_element(char *row, int32_t dtype, int32_t column, vec x, int32_t count) {
    if (dtype == SF_BFLOAT16) {
        bf16 *p = (bf16 *)row + column;
        if (count >= LANES) {
            store_bf16(p, x);
            return;
        }
        bf16 lanes[LANES];
        store_bf16(lanes, x);
        memcpy(p, lanes, (size_t)count * sizeof *lanes);
        return;
    }
    float *p = (float *)row + column;
    if (count >= LANES) {
        store(p, x);
        return;
    }
    float lanes[LANES];
    store(lanes, x);
    memcpy(p, lanes, (size_t)count * sizeof *lanes);
}

#endif
