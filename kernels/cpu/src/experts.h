/* A mixture of experts; see kernels/mixture_of_experts.py.
 *
 * Route: each row chooses top_k experts. Then rows are copied so that those of one expert are
 * neighbours, each expert multiplies its rows, and results are summed back row by row.
 */
#ifndef SPLITFUSE_EXPERTS_H
#define SPLITFUSE_EXPERTS_H

#include "matrix.h"

/* Scratch of all experts ops of a model; widths are those of the largest. A row is chosen top_k
 * times, so sorted, inner and outputs have num_rows * top_k rows. */
typedef struct {
    sf_buffer scores;  /* [num_rows, num_experts] float32 */
    sf_buffer sorted;  /* input rows by expert */
    sf_buffer inner;   /* activation(gate) * up */
    sf_buffer outputs; /* float32 */
    int32_t *experts;  /* [num_rows, top_k] which expert */
    int32_t *places;   /* [num_rows, top_k] row of sorted */
    float *shares;     /* [num_rows, top_k] how much of its output */
} expert_scratch;

/* Several phases; run by all threads. matrices: the router, then gate-and-up and down of each
 * expert. first: [num_experts + 1] rows of sorted, by expert; of this op alone, since a thread that is
 * late still counts items by it when the others have come to the next layer. `ahead` is fetched
 * meanwhile, too. */
void mixture_of_experts(const sf_op *op, const matrix *matrices, const sf_buffer *in,
                        const sf_buffer *residual, const sf_buffer *out,
                        const expert_scratch *scratch, int32_t *first, int32_t num_rows,
                        walker *w, kv_ahead *ahead);

#endif
