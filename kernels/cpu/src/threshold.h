/* Where to cut a row of likelihoods, without sorting it. */
#ifndef SPLITFUSE_THRESHOLD_H
#define SPLITFUSE_THRESHOLD_H

#include <stdint.h>

#include "simd.h"

/* Counts of values are multiples of it. */
enum { VALUES_AT_ONCE = 4 * LANES };

/* The sum of the values that are at least `limit`. */
double mass_from(const float *values, int32_t count, float limit);

/* The smallest v >= at_least such that fewer than k values are larger: of values that are at least
 * v, there are k or more, and all but the last and its equals are fewer. Values lie in 0..1.
 * spare: [count + VALUES_AT_ONCE], is written. */
float threshold_of_count(const float *values, int32_t count, float *spare, float at_least,
                         int64_t k);

/* The same, such that the sum of the values that are larger is below `mass`. */
float threshold_of_mass(const float *values, int32_t count, float *spare, float at_least,
                        double mass);

#endif
