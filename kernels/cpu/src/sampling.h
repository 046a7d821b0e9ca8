/* The next token of each row of logits; see kernels/sampling.py. */
#ifndef SPLITFUSE_SAMPLING_H
#define SPLITFUSE_SAMPLING_H

#include <stdint.h>

#include "pool.h"

/* How rows are drawn, one entry per row; kernels/cpu/library.py declares the same for ctypes. */
typedef struct {
    const float *temperature; /* > 0 */
    const int64_t *top_k;     /* >= 1; vocab_size or more: off */
    const double *top_p;      /* in (0, 1]; 1: off */
    const float *min_p;       /* in [0, 1]; 0: off */
    const int64_t *seeds;     /* the bits of an unsigned number */
    const int64_t *positions; /* of the drawn token in its sequence */
} sf_randomness;

typedef struct sf_sampler sf_sampler;

/* The threads are borrowed and must live longer. NULL on error. */
sf_sampler *sf_create_sampler(pool *threads, int32_t vocab_size);

void sf_destroy_sampler(sf_sampler *sampler);

/* Of each row [vocab_size] the largest logit and its id, the lowest of equals. largest is NaN where
 * one of the row's logits is; then the id is in range and means nothing. */
void sf_argmax(sf_sampler *sampler, const float *logits, int32_t num_rows, int64_t *token_ids,
               float *largest);

/* Steps 4 to 8 for the rows rows[i] of logits [num_logits_rows, vocab_size]: token_ids[i], by
 * parameters number i. Of rows that are not finite the id is in range and means nothing. Returns 0,
 * or -1 with nothing drawn. */
int32_t sf_sample(sf_sampler *sampler, const float *logits, int32_t num_logits_rows,
                  const int64_t *rows, int32_t num_rows, const sf_randomness *randomness,
                  int64_t *token_ids);

#endif
