/* What the plan of attention and its execution must agree on. */
#ifndef SPLITFUSE_ATTENTION_PLAN_H
#define SPLITFUSE_ATTENTION_PLAN_H

#include "attention.h"

enum {
    /* Rows of an item: their queries, scores and sums stay in L1 and L2 while keys stream by. */
    MAX_ITEM_ROWS = 48,
    /* Keys of a row are summed by splits, and the splits then merged, whoever computes them: so the
     * result does not depend on how the work was shared. */
    SPLIT_TILES = 32,
};

/* Running softmax of a row over some keys, and the sum of values that goes with it: the record in
 * partial results, too. Scores are in units of log(2). */
typedef struct {
    float lane_sums[16]; /* of exp2(score - max), by lane of the vectors of keys */
    float max;           /* about the largest score, see MAX_EXCESS; HIDDEN_SCORE: no key yet */
    float unused[15];
    float values[]; /* [value_dim] of exp2(score - max) * value */
} row_sums;

static inline int64_t row_sums_bytes(int32_t value_dim) {
    return (int64_t)sizeof(row_sums) + value_dim * (int64_t)sizeof(float);
}

/* Positions of a sequence's tokens in this batch: [first_position, kv_len). */
typedef struct {
    int32_t first_token, first_position, kv_len;
} sequence_span;

static inline sequence_span span_of(const sf_batch *batch, int32_t sequence) {
    int32_t first = batch->cu_seqlens_q[sequence], kv_len = batch->kv_lens[sequence];
    return (sequence_span){first, kv_len - (batch->cu_seqlens_q[sequence + 1] - first), kv_len};
}

/* Keys that a query sees: [begin, end). */
typedef struct {
    int32_t begin, end;
} key_range;

static inline key_range visible_keys(const sf_op *op, int32_t position) {
    int32_t begin = op->sliding_window > 0 ? position + 1 - op->sliding_window : 0;
    return (key_range){begin > 0 ? begin : 0, position + 1};
}

/* Scratch of one thread: see attention.c. */
int64_t attention_scratch_bytes(const kv_layer *kv);

#endif
