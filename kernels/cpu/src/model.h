/* What a model is made of. It is made and freed in model.c, its memory for steps grows in scratch.c,
 * and steps run in step.c. */
#ifndef SPLITFUSE_MODEL_H
#define SPLITFUSE_MODEL_H

#include "attention.h"
#include "check.h"
#include "experts.h"
#include "matrix.h"
#include "pool.h"
#include "splitfuse_cpu.h"

typedef struct {
    sf_op op;
    matrix *matrices;
    int32_t num_matrices;
    int32_t angles;        /* index of the rope angles, -1: nothing turns */
    int32_t work;          /* index of the attention work */
    int32_t *expert_first; /* of experts: [num_experts + 1], see experts.h */
} program_op;

/* Cosines and sines of one rope, for the tokens of a step: [num_tokens][2][num_frequencies]. */
typedef struct {
    const float *frequencies;
    int32_t num_frequencies;
    float scale;
    float *values;
} rope_table;

/* Attention of one shape; all layers of that shape share its items. */
typedef struct {
    int32_t op; /* the first of that shape */
    attention_work work;
} attention_shape;

struct sf_model {
    program_op *ops;
    int32_t num_ops;
    sf_buffer *buffers;
    int32_t num_buffers;
    int32_t dtype, vocab_size, num_threads;
    int32_t num_missing_weights;
    batch_limits limits;
    pool *threads;
    item_board *items;
    char **arenas; /* [num_threads] */
    size_t *arena_bytes;
    kv_layer *layers;
    size_t *layer_bytes; /* of keys and of values: [num_layers][2] */
    int32_t num_layers;
    rope_table *ropes;
    int32_t num_ropes;
    attention_shape *shapes;
    int32_t num_shapes;
    expert_scratch experts;
    int32_t token_capacity, logits_capacity; /* rows that buffers have */
    int32_t expert_capacity;                 /* rows that the scratch of experts has */
    /* of the step that is running */
    const sf_batch *batch;
    sf_buffer logits;
};

/* Elements from one row of a buffer to the next. */
int32_t padded_stride(int32_t width, int32_t dtype);

/* Of any op. A token may be sampled several times, so sampled rows may be the more. */
int32_t most_rows_of(const sf_batch *batch);

/* Give buffers and tables as many rows as a batch needs; what they held is lost. Returns 0, or -1
 * with the error kept. */
int ensure_capacity(sf_model *model, const sf_batch *batch);

void free_scratch(sf_model *model);

#endif
