/* A model's program, the batch of one step, and the call that runs it.
 *
 * Mirrors kernels/program.py and kernels/ragged_batch.py; kernels/cpu/library.py declares the same
 * structs for ctypes. All indices are checked before anything is followed: programs once, in
 * sf_create, batches at every step.
 */
#ifndef SPLITFUSE_CPU_H
#define SPLITFUSE_CPU_H

#include <stdint.h>

enum sf_dtype { SF_FLOAT32, SF_BFLOAT16 };

enum sf_kind {
    SF_EMBED,
    SF_EMBED_POSITIONS,
    SF_NORM,
    SF_LINEAR,
    SF_ROPE_STORE_KV,
    SF_PAGED_ATTENTION,
    SF_GATED_ACTIVATION,
    SF_GATHER_ROWS,
    SF_MIXTURE_OF_EXPERTS,
    SF_LOGITS,
};

enum sf_activation { SF_NONE, SF_RELU, SF_SILU, SF_GELU, SF_GELU_TANH };

enum sf_norm { SF_RMS, SF_LAYER };

/* Activations [rows, width]; rows lie `stride` elements apart. */
typedef struct {
    int32_t width;
    int32_t dtype;
    int32_t by_logits_rows; /* 0: a row per token; 1: per row that is sampled */
    int32_t stride;         /* set by sf_create: elements, at least width + LANES */
    void *data;             /* set by sf_create, replaced when a larger batch comes */
} sf_buffer;

/* One op; fields that its kind does not use are 0, buffers that it has not are -1. */
typedef struct {
    int32_t kind;
    int32_t input, output, residual; /* buffers */
    int32_t activation;
    int32_t is_gated; /* of a linear: its columns are [gate | up], its output is activation(gate) * up */
    int32_t norm;
    int32_t layer;
    int32_t in_width, out_width; /* of a linear, logits; out_width counts gate and up */
    int32_t num_heads, num_kv_heads, head_dim;
    int32_t num_frequencies; /* dimensions i and i + num_frequencies of a head turn together; 0: none */
    int32_t sliding_window;  /* 0: none */
    int32_t num_rows;        /* of an embedding table */
    int32_t offset;          /* added to positions before they are looked up */
    int32_t num_experts, top_k, inner_width;
    float eps, scale, soft_cap, rope_scale; /* soft_cap 0: none */
    const void *table;                      /* [num_rows, width] in the model's dtype */
    const float *weight, *bias;             /* of a norm; the bias of a linear; NULL: none */
    const float *frequencies;               /* [num_frequencies] radians per position */
} sf_op;

/* See kernels/ragged_batch.py. */
typedef struct {
    int32_t num_tokens, num_seqs, max_num_blocks, num_logits_rows;
    const int32_t *token_ids, *positions, *cu_seqlens_q, *kv_lens, *block_tables, *slot_mapping,
        *logits_index;
} sf_batch;

typedef struct sf_model sf_model;

/* Text of the last error of this thread; "" if there was none. */
const char *sf_last_error(void);

/* A model without weights; NULL on error. Ops and buffers are copied, what they point to is not.
 * num_looks: how often a thread looks for those it waits for, before it sleeps. */
sf_model *sf_create(const sf_op *ops, int32_t num_ops, const sf_buffer *buffers,
                    int32_t num_buffers, int32_t dtype, int32_t vocab_size, int32_t num_threads,
                    int32_t num_looks);

void sf_destroy(sf_model *model);

/* The model's threads, for what runs between its steps. */
struct pool *sf_threads(const sf_model *model);

/* Pack a linear's, logits' or experts' matrix [rows, in_width] of the model's dtype.
 * part: 0; of experts: 0 the router, 1 + 2 * expert its gate and up, 2 + 2 * expert its down. */
int32_t sf_set_weight(sf_model *model, int32_t op, int32_t part, const void *matrix);

int64_t sf_kv_cache_bytes(const sf_model *model, int64_t num_blocks, int32_t block_size);

/* Zeroed memory for every layer; what was cached before is gone. */
int32_t sf_allocate_kv_cache(sf_model *model, int64_t num_blocks, int32_t block_size);

/* Take memory for the extents of the blocks [begin, end) of one array of the cache, so that the
 * steps that write them first need not. Layer i has the arrays 2 * i and 2 * i + 1. Returns 0, or -1
 * where the system cannot or there are no such blocks. */
int32_t sf_populate_kv_cache(sf_model *model, int32_t array, int64_t begin, int64_t end);

/* One forward pass. logits: [num_logits_rows, vocab_size]. Returns 0, or -1 with the cache and the
 * logits as they were. */
int32_t sf_step(sf_model *model, const sf_batch *batch, float *logits);

#endif
