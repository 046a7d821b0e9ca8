/* A model: its program with packed weights, its KV cache, the threads, and the walk over the ops. */

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>

#include "attention.h"
#include "check.h"
#include "errors.h"
#include "experts.h"
#include "matrix.h"
#include "memory.h"
#include "pointwise.h"
#include "pool.h"
#include "rows.h"
#include "splitfuse_cpu.h"

enum {
    LINE = 64,
    /* Shares of two threads must not start at the same place of a large power of two: their
     * streams would meet in the same memory banks. An odd number of cache lines apart. */
    ARENA_STAGGER_BYTES = 67 * LINE,
    /* Prefetching runs over the end of an arena; the system's page there is ours, too. */
    ARENA_SLACK_BYTES = 16384,
};

typedef struct {
    sf_op op;
    matrix *matrices;
    int32_t num_matrices;
    int32_t angles;         /* index of the rope angles, -1: nothing turns */
    int32_t work;           /* index of the attention work */
    atomic_int next_item;   /* of this attention, in this step */
    bool ends_with_barrier; /* false: the next op reads only rows that the same thread wrote */
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
    /* of the step that is running */
    const sf_batch *batch;
    sf_buffer logits;
};

static size_t element_bytes(int32_t dtype) { return dtype == SF_BFLOAT16 ? 2 : 4; }

/* ── making one ────────────────────────────────────────────────────────────────────────────── */

/* Rows lie an odd number of cache lines apart, so that the same column of neighbouring rows does
 * not fall into the same set of a cache. */
static int32_t padded_stride(int32_t width, int32_t dtype) {
    int32_t per_line = (int32_t)(LINE / element_bytes(dtype));
    int32_t lines = (width + LANES + per_line - 1) / per_line;
    return (lines | 1) * per_line;
}

static bool is_matrix_op(const sf_op *op) {
    return op->kind == SF_LINEAR || op->kind == SF_LOGITS || op->kind == SF_MIXTURE_OF_EXPERTS;
}

static void describe_experts(const sf_model *model, program_op *p) {
    const sf_op *op = &p->op;
    int32_t width = model->buffers[op->input].width, inner = op->inner_width;
    p->matrices[0] =
        describe_matrix(model->dtype, width, op->num_experts, false, model->num_threads);
    for (int32_t e = 0; e < op->num_experts; e++) {
        p->matrices[1 + 2 * e] =
            describe_matrix(model->dtype, width, 2 * inner, true, model->num_threads);
        p->matrices[2 + 2 * e] =
            describe_matrix(model->dtype, inner, width, false, model->num_threads);
    }
}

static int describe_matrices(sf_model *model) {
    for (int32_t i = 0; i < model->num_ops; i++) {
        program_op *p = &model->ops[i];
        if (!is_matrix_op(&p->op)) continue;
        bool has_experts = p->op.kind == SF_MIXTURE_OF_EXPERTS;
        p->num_matrices = has_experts ? 1 + 2 * p->op.num_experts : 1;
        p->matrices = calloc((size_t)p->num_matrices, sizeof *p->matrices);
        if (p->matrices == NULL) return fail("out of memory");
        if (has_experts) {
            describe_experts(model, p);
        } else {
            p->matrices[0] = describe_matrix(model->dtype, p->op.in_width, p->op.out_width,
                                             p->op.is_gated, model->num_threads);
        }
        model->num_missing_weights += p->num_matrices;
        for (int32_t m = 0; m < p->num_matrices; m++) {
            p->matrices[m].shares = calloc((size_t)model->num_threads, sizeof(char *));
            if (p->matrices[m].shares == NULL) return fail("out of memory");
        }
    }
    return 0;
}

static size_t share_bytes(const matrix *m, int32_t thread) {
    size_t bytes = (size_t)((share_begin(m, thread + 1) - share_begin(m, thread)) * m->block_bytes);
    return (bytes + LINE - 1) / LINE * LINE;
}

/* Lay the shares of a thread out behind each other from `at`; NULL: only add them up. */
static size_t lay_out_shares(sf_model *model, int32_t thread, char *at) {
    size_t used = (size_t)thread * ARENA_STAGGER_BYTES;
    for (int32_t i = 0; i < model->num_ops; i++) {
        for (int32_t m = 0; m < model->ops[i].num_matrices; m++) {
            matrix *one = &model->ops[i].matrices[m];
            if (at != NULL) one->shares[thread] = at + used;
            used += share_bytes(one, thread);
        }
    }
    return used + ARENA_SLACK_BYTES;
}

static int make_arenas(sf_model *model) {
    for (int32_t thread = 0; thread < model->num_threads; thread++) {
        model->arena_bytes[thread] = lay_out_shares(model, thread, NULL);
        model->arenas[thread] = map_memory(model->arena_bytes[thread]);
        if (model->arenas[thread] == NULL) return fail("out of memory for weights");
        lay_out_shares(model, thread, model->arenas[thread]);
    }
    return 0;
}

static int32_t find_rope(sf_model *model, const sf_op *op) {
    if (op->num_frequencies == 0) return -1;
    for (int32_t i = 0; i < model->num_ropes; i++) {
        const rope_table *rope = &model->ropes[i];
        if (rope->frequencies == op->frequencies && rope->num_frequencies == op->num_frequencies &&
            rope->scale == op->rope_scale) {
            return i;
        }
    }
    model->ropes[model->num_ropes] =
        (rope_table){op->frequencies, op->num_frequencies, op->rope_scale, NULL};
    return model->num_ropes++;
}

static int32_t find_shape(sf_model *model, int32_t index) {
    const sf_op *op = &model->ops[index].op;
    for (int32_t i = 0; i < model->num_shapes; i++) {
        const sf_op *other = &model->ops[model->shapes[i].op].op;
        if (other->num_heads == op->num_heads && other->num_kv_heads == op->num_kv_heads &&
            other->head_dim == op->head_dim && other->sliding_window == op->sliding_window) {
            return i;
        }
    }
    model->shapes[model->num_shapes] = (attention_shape){.op = index};
    return model->num_shapes++;
}

static int describe_layers(sf_model *model) {
    for (int32_t i = 0; i < model->num_ops; i++) {
        program_op *p = &model->ops[i];
        const sf_op *op = &p->op;
        if (op->kind != SF_ROPE_STORE_KV && op->kind != SF_PAGED_ATTENTION) continue;
        if (op->layer >= model->num_layers) return fail("op %d: layer %d", i, op->layer);
        if (op->kind == SF_PAGED_ATTENTION) {
            const kv_layer *kv = &model->layers[op->layer];
            if (kv->head_dim != op->head_dim || kv->num_kv_heads != op->num_kv_heads) {
                return fail("op %d: attention differs from what its layer stores", i);
            }
            p->work = find_shape(model, i);
            continue;
        }
        model->layers[op->layer] = (kv_layer){
            .dtype = model->dtype,
            .num_kv_heads = op->num_kv_heads,
            .head_dim = op->head_dim,
            .key_dim = (op->head_dim + 1) / 2 * 2,
            .value_dim = (op->head_dim + 15) / 16 * 16,
        };
        p->angles = find_rope(model, op);
    }
    return 0;
}

static bool is_by_rows(int32_t kind) {
    return kind == SF_EMBED || kind == SF_EMBED_POSITIONS || kind == SF_NORM ||
           kind == SF_GATED_ACTIVATION;
}

/* Threads share rows in the same way in all ops by rows, so each goes on with rows of its own. */
static void place_barriers(sf_model *model) {
    for (int32_t i = 0; i < model->num_ops; i++) {
        bool is_last = i + 1 == model->num_ops;
        bool stays = !is_last && is_by_rows(model->ops[i].op.kind) &&
                     is_by_rows(model->ops[i + 1].op.kind);
        model->ops[i].ends_with_barrier = !stays && !is_last;
    }
}

/* All mixtures of experts of a model share their scratch, so they must have one shape. */
static int describe_scratch(sf_model *model) {
    const sf_op *first = NULL;
    for (int32_t i = 0; i < model->num_ops; i++) {
        const sf_op *op = &model->ops[i].op;
        if (op->kind != SF_MIXTURE_OF_EXPERTS) continue;
        if (first == NULL) first = op;
        if (op->num_experts != first->num_experts || op->top_k != first->top_k ||
            op->inner_width != first->inner_width ||
            model->buffers[op->input].width != model->buffers[first->input].width) {
            return fail("op %d: mixtures of experts of two shapes", i);
        }
    }
    if (first == NULL) return 0;
    int32_t width = model->buffers[first->input].width;
    model->experts.scores = (sf_buffer){.width = first->num_experts, .dtype = SF_FLOAT32};
    model->experts.sorted = (sf_buffer){.width = width, .dtype = model->dtype};
    model->experts.inner = (sf_buffer){.width = first->inner_width, .dtype = model->dtype};
    model->experts.outputs = (sf_buffer){.width = width, .dtype = SF_FLOAT32};
    model->experts.first = calloc((size_t)first->num_experts + 1, sizeof(int32_t));
    return model->experts.first == NULL ? fail("out of memory") : 0;
}

static batch_limits limits_of(const sf_model *model) {
    batch_limits limits = {.vocab_size = model->vocab_size, .num_positions = INT32_MAX};
    for (int32_t i = 0; i < model->num_ops; i++) {
        const sf_op *op = &model->ops[i].op;
        if (op->kind == SF_EMBED && op->num_rows < limits.vocab_size) {
            limits.vocab_size = op->num_rows;
        }
        if (op->kind == SF_EMBED_POSITIONS && op->num_rows - op->offset < limits.num_positions) {
            limits.num_positions = op->num_rows - op->offset;
        }
    }
    return limits;
}

static int copy_program(sf_model *model, const sf_op *ops, const sf_buffer *buffers) {
    size_t num_ops = (size_t)model->num_ops, num_buffers = (size_t)model->num_buffers;
    size_t num_threads = (size_t)model->num_threads;
    for (size_t i = 0; i < num_ops; i++) {
        if (ops[i].kind == SF_ROPE_STORE_KV) model->num_layers++;
    }
    model->ops = calloc(num_ops, sizeof *model->ops);
    model->buffers = calloc(num_buffers, sizeof *model->buffers);
    model->arenas = calloc(num_threads, sizeof *model->arenas);
    model->arena_bytes = calloc(num_threads, sizeof *model->arena_bytes);
    model->ropes = calloc(num_ops, sizeof *model->ropes);
    model->shapes = calloc(num_ops, sizeof *model->shapes);
    model->layers = calloc(num_ops, sizeof *model->layers);
    model->layer_bytes = calloc(2 * num_ops, sizeof *model->layer_bytes);
    if (model->ops == NULL || model->buffers == NULL || model->arenas == NULL ||
        model->arena_bytes == NULL || model->ropes == NULL || model->shapes == NULL ||
        model->layers == NULL || model->layer_bytes == NULL) {
        return fail("out of memory");
    }
    for (size_t i = 0; i < num_ops; i++) {
        model->ops[i].op = ops[i];
        model->ops[i].angles = -1;
    }
    for (size_t i = 0; i < num_buffers; i++) {
        model->buffers[i] = buffers[i];
        model->buffers[i].data = NULL;
        model->buffers[i].stride = padded_stride(buffers[i].width, buffers[i].dtype);
    }
    return 0;
}

sf_model *sf_create(const sf_op *ops, int32_t num_ops, const sf_buffer *buffers,
                    int32_t num_buffers, int32_t dtype, int32_t vocab_size, int32_t num_threads,
                    int32_t spin) {
    if (check_program(ops, num_ops, buffers, num_buffers, dtype, vocab_size) != 0) return NULL;
    if (num_threads < 1) {
        fail("%d threads", num_threads);
        return NULL;
    }
    sf_model *model = calloc(1, sizeof *model);
    if (model == NULL) return NULL;
    model->num_ops = num_ops;
    model->num_buffers = num_buffers;
    model->dtype = dtype;
    model->vocab_size = vocab_size;
    model->num_threads = num_threads;
    bool is_made = copy_program(model, ops, buffers) == 0 && describe_layers(model) == 0 &&
                   describe_matrices(model) == 0 && describe_scratch(model) == 0 &&
                   make_arenas(model) == 0;
    if (is_made) {
        place_barriers(model);
        model->limits = limits_of(model);
        model->threads = pool_create(num_threads, spin);
    }
    if (model->threads != NULL) return model;
    if (is_made) fail("cannot start %d threads", num_threads);
    sf_destroy(model);
    return NULL;
}

/* ── weights ───────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const matrix *matrix;
    const void *weights;
} packing;

static void pack_in_thread(void *context, int thread) {
    const packing *p = context;
    pack_share(p->matrix, p->weights, thread);
}

int32_t sf_set_weight(sf_model *model, int32_t op, int32_t part, const void *weights) {
    if (op < 0 || op >= model->num_ops || part < 0 || part >= model->ops[op].num_matrices) {
        return fail("op %d has no matrix %d", op, part);
    }
    packing p = {&model->ops[op].matrices[part], weights};
    pool_run(model->threads, pack_in_thread, &p);
    model->num_missing_weights--;
    return 0;
}

/* ── the KV cache ──────────────────────────────────────────────────────────────────────────── */

static kv_layer with_block_size(kv_layer kv, int32_t block_size) {
    kv.block_size = block_size;
    kv.tiles_per_block = (block_size + KEYS_PER_TILE - 1) / KEYS_PER_TILE;
    return kv;
}

int64_t sf_kv_cache_bytes(const sf_model *model, int64_t num_blocks, int32_t block_size) {
    int64_t elements = 0;
    for (int32_t i = 0; i < model->num_layers; i++) {
        kv_layer kv = with_block_size(model->layers[i], block_size);
        elements += keys_per_block_elements(&kv) + values_per_block_elements(&kv);
    }
    return num_blocks * elements * (int64_t)element_bytes(model->dtype);
}

static void free_kv_cache(sf_model *model) {
    for (int32_t i = 0; i < model->num_layers; i++) {
        unmap_memory(model->layers[i].keys, model->layer_bytes[2 * i]);
        unmap_memory(model->layers[i].values, model->layer_bytes[2 * i + 1]);
        model->layers[i].keys = model->layers[i].values = NULL;
    }
    model->limits.num_blocks = 0;
}

int32_t sf_allocate_kv_cache(sf_model *model, int64_t num_blocks, int32_t block_size) {
    free_kv_cache(model);
    if (num_blocks < 0 || block_size < 1) return fail("%d tokens per block", block_size);
    model->limits.block_size = block_size;
    for (int32_t i = 0; i < model->num_layers && num_blocks > 0; i++) {
        kv_layer *kv = &model->layers[i];
        *kv = with_block_size(*kv, block_size);
        size_t of_blocks = (size_t)num_blocks * element_bytes(model->dtype);
        size_t *bytes = &model->layer_bytes[2 * i];
        bytes[0] = of_blocks * (size_t)keys_per_block_elements(kv);
        bytes[1] = of_blocks * (size_t)values_per_block_elements(kv);
        kv->keys = map_memory(bytes[0]);
        kv->values = map_memory(bytes[1]);
        if (kv->keys == NULL || kv->values == NULL) {
            free_kv_cache(model);
            return fail("out of memory for the KV cache");
        }
    }
    model->limits.num_blocks = num_blocks;
    return 0;
}

/* ── memory for a step ─────────────────────────────────────────────────────────────────────── */

/* Zeroed, so that padding is; the rows that were there are lost. */
static int resize_buffer(sf_buffer *buffer, int64_t old_rows, int64_t num_rows) {
    buffer->stride = padded_stride(buffer->width, buffer->dtype);
    size_t row_bytes = (size_t)buffer->stride * element_bytes(buffer->dtype);
    unmap_memory(buffer->data, (size_t)old_rows * row_bytes);
    buffer->data = num_rows > 0 ? map_memory((size_t)num_rows * row_bytes) : NULL;
    return buffer->data == NULL && num_rows > 0 ? fail("out of memory for activations") : 0;
}

static int resize_buffers(sf_model *model, bool by_logits_rows, int64_t old_rows,
                          int64_t num_rows) {
    for (int32_t i = 0; i < model->num_buffers; i++) {
        sf_buffer *buffer = &model->buffers[i];
        if ((buffer->by_logits_rows != 0) != by_logits_rows) continue;
        if (resize_buffer(buffer, old_rows, num_rows) != 0) return -1;
    }
    return 0;
}

static int32_t choices_per_row(const sf_model *model) {
    for (int32_t i = 0; i < model->num_ops; i++) {
        if (model->ops[i].op.kind == SF_MIXTURE_OF_EXPERTS) return model->ops[i].op.top_k;
    }
    return 0;
}

static int resize_experts(sf_model *model, int64_t old_rows, int64_t num_rows) {
    expert_scratch *e = &model->experts;
    int64_t top_k = choices_per_row(model);
    if (top_k == 0) return 0;
    free(e->experts);
    free(e->places);
    free(e->shares);
    size_t num_choices = (size_t)(num_rows * top_k);
    e->experts = calloc(num_choices + 1, sizeof *e->experts);
    e->places = calloc(num_choices + 1, sizeof *e->places);
    e->shares = calloc(num_choices + 1, sizeof *e->shares);
    if (e->experts == NULL || e->places == NULL || e->shares == NULL) {
        return fail("out of memory for activations");
    }
    if (resize_buffer(&e->scores, old_rows, num_rows) != 0) return -1;
    if (resize_buffer(&e->sorted, old_rows * top_k, num_rows * top_k) != 0) return -1;
    if (resize_buffer(&e->inner, old_rows * top_k, num_rows * top_k) != 0) return -1;
    return resize_buffer(&e->outputs, old_rows * top_k, num_rows * top_k);
}

static int resize_ropes(sf_model *model, int64_t num_rows) {
    for (int32_t i = 0; i < model->num_ropes; i++) {
        rope_table *rope = &model->ropes[i];
        free(rope->values);
        rope->values = malloc((size_t)num_rows * 2 * (size_t)rope->num_frequencies * sizeof(float) + 1);
        if (rope->values == NULL) return fail("out of memory for activations");
    }
    return 0;
}

static int32_t grown(int32_t capacity, int32_t needed) {
    return needed > 2 * capacity ? needed : 2 * capacity;
}

static int ensure_capacity(sf_model *model, const sf_batch *batch) {
    if (batch->num_tokens > model->token_capacity) {
        int32_t old = model->token_capacity, rows = grown(old, batch->num_tokens);
        model->token_capacity = 0; /* until all have grown */
        if (resize_buffers(model, false, old, rows) != 0) return -1;
        if (resize_experts(model, old, rows) != 0) return -1;
        if (resize_ropes(model, rows) != 0) return -1;
        model->token_capacity = rows;
    }
    if (batch->num_logits_rows > model->logits_capacity) {
        int32_t old = model->logits_capacity, rows = grown(old, batch->num_logits_rows);
        model->logits_capacity = 0;
        if (resize_buffers(model, true, old, rows) != 0) return -1;
        model->logits_capacity = rows;
    }
    return 0;
}

void sf_destroy(sf_model *model) {
    if (model == NULL) return;
    pool_destroy(model->threads);
    free_kv_cache(model);
    if (model->buffers != NULL) {
        resize_buffers(model, false, model->token_capacity, 0);
        resize_buffers(model, true, model->logits_capacity, 0);
    }
    resize_experts(model, model->token_capacity, 0);
    free(model->experts.experts);
    free(model->experts.places);
    free(model->experts.shares);
    free(model->experts.first);
    for (int32_t i = 0; i < model->num_ropes; i++) free(model->ropes[i].values);
    for (int32_t i = 0; i < model->num_shapes; i++) free_attention_work(&model->shapes[i].work);
    for (int32_t i = 0; model->ops != NULL && i < model->num_ops; i++) {
        for (int32_t m = 0; m < model->ops[i].num_matrices; m++) {
            free(model->ops[i].matrices[m].shares);
        }
        free(model->ops[i].matrices);
    }
    for (int32_t i = 0; model->arenas != NULL && i < model->num_threads; i++) {
        unmap_memory(model->arenas[i], model->arena_bytes[i]);
    }
    free(model->ops);
    free(model->buffers);
    free(model->arenas);
    free(model->arena_bytes);
    free(model->ropes);
    free(model->shapes);
    free(model->layers);
    free(model->layer_bytes);
    free(model);
}

/* ── a step ────────────────────────────────────────────────────────────────────────────────── */

static const sf_buffer *buffer_of(const sf_model *model, int32_t index) {
    return index < 0 ? NULL : &model->buffers[index];
}

static int32_t rows_of(const sf_model *model, int32_t index) {
    return model->buffers[index].by_logits_rows ? model->batch->num_logits_rows
                                                : model->batch->num_tokens;
}

static void run_linear(sf_model *model, const program_op *p, int thread) {
    const sf_op *op = &p->op;
    bool is_last = op->kind == SF_LOGITS;
    epilogue end = {op->bias, op->activation, op->soft_cap, buffer_of(model, op->residual)};
    multiply(&p->matrices[0], buffer_of(model, op->input),
             is_last ? &model->logits : buffer_of(model, op->output), &end,
             rows_of(model, op->input), thread);
}

static void run_attention(sf_model *model, program_op *p, int thread) {
    paged_attention(&p->op, model->batch, buffer_of(model, p->op.input),
                    buffer_of(model, p->op.output), &model->layers[p->op.layer],
                    &model->shapes[p->work].work, &p->next_item, thread);
}

static void run_rope(sf_model *model, const program_op *p, int thread) {
    const float *angles = p->angles < 0 ? NULL : model->ropes[p->angles].values;
    rope_store_kv(&p->op, model->batch, buffer_of(model, p->op.input), angles,
                  &model->layers[p->op.layer], thread, model->num_threads);
}

static void run_by_rows(sf_model *model, const sf_op *op, int thread) {
    const sf_buffer *in = buffer_of(model, op->input), *out = buffer_of(model, op->output);
    row_share rows = share_of_rows(rows_of(model, op->output), thread, model->num_threads);
    switch (op->kind) {
    case SF_EMBED: embed(op, model->dtype, model->batch->token_ids, out, rows); return;
    case SF_EMBED_POSITIONS:
        embed_positions(op, model->dtype, model->batch->positions, out, rows);
        return;
    case SF_NORM: norm(op, in, buffer_of(model, op->residual), out, rows); return;
    case SF_GATED_ACTIVATION: gated_activation(op, in, out, rows); return;
    case SF_GATHER_ROWS: gather_rows(model->batch->logits_index, in, out, rows); return;
    }
}

static void run_op(sf_model *model, program_op *p, int thread) {
    const sf_op *op = &p->op;
    switch (op->kind) {
    case SF_LINEAR:
    case SF_LOGITS: run_linear(model, p, thread); return;
    case SF_ROPE_STORE_KV: run_rope(model, p, thread); return;
    case SF_PAGED_ATTENTION: run_attention(model, p, thread); return;
    case SF_MIXTURE_OF_EXPERTS:
        mixture_of_experts(op, p->matrices, buffer_of(model, op->input),
                           buffer_of(model, op->residual), buffer_of(model, op->output),
                           &model->experts, rows_of(model, op->input), model->threads, thread);
        return;
    default: run_by_rows(model, op, thread);
    }
}

static void walk(void *context, int thread) {
    sf_model *model = context;
    row_share tokens = share_of_rows(model->batch->num_tokens, thread, model->num_threads);
    for (int32_t i = 0; i < model->num_ropes; i++) {
        const rope_table *rope = &model->ropes[i];
        rope_angles(model->batch->positions, tokens.begin, tokens.end, rope->frequencies,
                    rope->num_frequencies, rope->scale, rope->values);
    }
    for (int32_t i = 0; i < model->num_ops; i++) {
        run_op(model, &model->ops[i], thread);
        if (model->ops[i].ends_with_barrier) pool_barrier(model->threads);
    }
}

int32_t sf_step(sf_model *model, const sf_batch *batch, float *logits) {
    if (model->num_missing_weights > 0) {
        return fail("%d weights are missing", model->num_missing_weights);
    }
    if (check_batch(batch, model->limits) != 0) return -1;
    if (ensure_capacity(model, batch) != 0) return -1;
    for (int32_t i = 0; i < model->num_shapes; i++) {
        attention_shape *shape = &model->shapes[i];
        const sf_op *op = &model->ops[shape->op].op;
        if (plan_attention(&shape->work, op, batch, &model->layers[op->layer],
                           model->num_threads) != 0) {
            return fail("out of memory for attention");
        }
    }
    for (int32_t i = 0; i < model->num_ops; i++) atomic_store(&model->ops[i].next_item, 0);
    model->batch = batch;
    model->logits = (sf_buffer){.width = model->vocab_size,
                                .dtype = SF_FLOAT32,
                                .by_logits_rows = 1,
                                .stride = model->vocab_size,
                                .data = logits};
    pool_run(model->threads, walk, model);
    return 0;
}
