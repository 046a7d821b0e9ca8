#include "threshold.h"

#include <stdbool.h>

/* Halvings between two rounds of throwing away what is decided. */
enum { HALVINGS_PER_ROUND = 4 };

/* Floats that are not negative are in the order of their bits. */
INLINE int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* How much lies above: the number of values, or their sum. Each of 4 * LANES sums is of few terms, so
 * their rounding stays near that of one float. */
INLINE double weight_above(const float *values, int32_t count, int32_t limit, bool by_mass) {
    vec sums[4] = {};
    for (int32_t i = 0; i < count; i += VALUES_AT_ONCE) {
        for (int j = 0; j < 4; j++) {
            vec x = load(values + i + j * LANES);
            ivec above = (ivec)x > (ivec){} + limit;
            sums[j] += (vec)(above & (ivec)(by_mass ? x : splat(1.0f)));
        }
    }
    double weight = 0;
    for (int j = 0; j < 4; j++) {
        for (int lane = 0; lane < LANES; lane++) weight += sums[j][lane];
    }
    return weight;
}

/* Append those of a vector that are selected; may write LANES values. Returns the new length. */
INLINE int32_t append(float *to, int32_t length, vec x, ivec selected) {
#if defined(__AVX512F__)
    __mmask16 mask = _mm512_test_epi32_mask((__m512i)selected, (__m512i)selected);
    _mm512_storeu_ps(to + length, _mm512_maskz_compress_ps(mask, (__m512)x));
    return length + __builtin_popcount(mask);
#else
    for (int lane = 0; lane < LANES; lane++) {
        to[length] = x[lane];
        length -= selected[lane];
    }
    return length;
#endif
}

/* Keep values in (low, high], and zeros up to a multiple of VALUES_AT_ONCE. `to` may be `values`. */
static int32_t keep_between(const float *values, int32_t count, float *to, int32_t low,
                            int32_t high) {
    int32_t length = 0;
    for (int32_t i = 0; i < count; i += LANES) {
        vec x = load(values + i);
        ivec selected = ((ivec)x > (ivec){} + low) & ((ivec)x <= (ivec){} + high);
        length = append(to, length, x, selected);
    }
    int32_t padded = (length + VALUES_AT_ONCE - 1) / VALUES_AT_ONCE * VALUES_AT_ONCE;
    for (; length < padded; length++) to[length] = 0;
    return padded;
}

/* Invariants: what lies above `low` weighs `target` or more (or low is below at_least); what lies
 * above `high` weighs `above_high`, which is less. */
INLINE float smallest_threshold(const float *values, int32_t count, float *spare, float at_least,
                                double target, bool by_mass) {
    int32_t low = bits_of(at_least) - 1, high = bits_of(1.0f);
    double above_high = 0, dropped = 0;
    for (int halvings = 1; high - low > 1; halvings++) {
        int32_t middle = low + (high - low) / 2;
        double weight = dropped + weight_above(values, count, middle, by_mass);
        if (weight < target) {
            high = middle;
            above_high = weight;
        } else {
            low = middle;
        }
        if (halvings % HALVINGS_PER_ROUND == 0 && count > VALUES_AT_ONCE) {
            count = keep_between(values, count, spare, low, high);
            values = spare;
            dropped = above_high;
        }
    }
    return float_of(high);
}

double mass_from(const float *values, int32_t count, float limit) {
    return weight_above(values, count, bits_of(limit) - 1, true);
}

float threshold_of_count(const float *values, int32_t count, float *spare, float at_least,
                         int64_t k) {
    return smallest_threshold(values, count, spare, at_least, (double)k, false);
}

float threshold_of_mass(const float *values, int32_t count, float *spare, float at_least,
                        double mass) {
    return smallest_threshold(values, count, spare, at_least, mass, true);
}
