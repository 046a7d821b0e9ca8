#include "model.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "errors.h"
#include "kv_cache.h"
#include "memory.h"
#include "pointwise.h"

enum {
    LINE = 64,
    /* Shares of two threads must not start at the same place of a large power of two: their
     * streams would meet in the same memory banks. An odd number of cache lines apart. */
    ARENA_STAGGER_BYTES = 67 * LINE,
    /* Prefetching runs over the end of an arena; the system's page there is ours, too. */
    ARENA_SLACK_BYTES = 16384,
};

/* ── making one ────────────────────────────────────────────────────────────────────────────── */

static bool is_matrix_op(const sf_op *op) {
    return op->kind == SF_LINEAR || op->kind == SF_LOGITS || op->kind == SF_MIXTURE_OF_EXPERTS;
}

static int describe_experts(const sf_model *model, program_op *p) {
    const sf_op *op = &p->op;
    int32_t width = model->buffers[op->input].width, inner = op->inner_width;
    p->matrices[0] =
        describe_matrix(model->dtype, width, op->num_experts, false, model->num_threads);
    p->expert_first = calloc((size_t)op->num_experts + 1, sizeof *p->expert_first);
    if (p->expert_first == NULL) return fail("out of memory");
    for (int32_t e = 0; e < op->num_experts; e++) {
        p->matrices[1 + 2 * e] =
            describe_matrix(model->dtype, width, 2 * inner, true, model->num_threads);
        p->matrices[2 + 2 * e] =
            describe_matrix(model->dtype, inner, width, false, model->num_threads);
    }
    return 0;
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
            if (describe_experts(model, p) != 0) return -1;
        } else {
            p->matrices[0] = describe_matrix(model->dtype, p->op.in_width, p->op.out_width,
                                             p->op.is_gated, model->num_threads);
        }
        model->num_missing_weights += p->num_matrices;
        for (int32_t m = 0; m < p->num_matrices; m++) {
            size_t num_threads = (size_t)model->num_threads;
            p->matrices[m].shares = calloc(num_threads, sizeof(char *));
            p->matrices[m].rare = calloc(num_threads, sizeof(rare_weights));
            if (p->matrices[m].shares == NULL || p->matrices[m].rare == NULL) {
                return fail("out of memory");
            }
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
    return 0;
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
                    int32_t num_looks) {
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
        model->limits = limits_of(model);
        model->items = create_items(num_threads, num_looks);
        model->threads = pool_create(num_threads, num_looks);
    }
    if (model->threads != NULL && model->items != NULL) return model;
    if (is_made) fail("cannot start %d threads", num_threads);
    sf_destroy(model);
    return NULL;
}

struct pool *sf_threads(const sf_model *model) { return model->threads; }

/* ── weights ───────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    item_board *items;
    const matrix *matrix;
    const void *weights;
    atomic_bool failed;
} packing;

static void pack_some(void *context, row_range shares) {
    packing *p = context;
    for (int32_t i = shares.begin; i < shares.end; i++) {
        if (pack_share(p->matrix, p->weights, i) != 0) p->failed = true;
    }
}

/* Shares are dealt to their own threads: who writes one first decides which memory it gets. */
static void pack_shares(void *context, int thread) {
    const packing *p = context;
    walker w = walk_from_start(p->items, thread);
    for_rows(&w, num_walkers(&w), pack_some, context);
    if (thread == 0) end_step(&w);
}

int32_t sf_set_weight(sf_model *model, int32_t op, int32_t part, const void *weights) {
    if (op < 0 || op >= model->num_ops || part < 0 || part >= model->ops[op].num_matrices) {
        return fail("op %d has no matrix %d", op, part);
    }
    if (begin_step(model->items, 1) != 0) return fail("out of memory for items");
    matrix *m = &model->ops[op].matrices[part];
    prepare_packing(m, weights);
    packing p = {.items = model->items, .matrix = m, .weights = weights};
    pool_run(model->threads, pack_shares, &p);
    if (p.failed) return fail("out of memory for weights");
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
    return num_blocks * elements * element_bytes(model->dtype);
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
        kv->num_blocks = num_blocks;
        size_t of_blocks = (size_t)(num_blocks * element_bytes(model->dtype));
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

int32_t sf_populate_kv_cache(sf_model *model, int32_t array, int64_t begin, int64_t end) {
    if (array < 0 || array >= 2 * model->num_layers || begin < 0 || begin >= end ||
        end > model->limits.num_blocks) {
        return fail("no blocks %ld to %ld of array %d", (long)begin, (long)end, array);
    }
    const kv_layer *kv = &model->layers[array / 2];
    char *memory = array % 2 == 0 ? kv->keys : kv->values;
    size_t block_bytes = model->layer_bytes[array] / (size_t)model->limits.num_blocks;
    begin = extent_begin(begin), end = extent_end(kv, end - 1);
    size_t num_bytes = (size_t)(end - begin) * block_bytes;
    return populate_memory(memory + (size_t)begin * block_bytes, num_bytes);
}

/* ── its end ───────────────────────────────────────────────────────────────────────────────── */

void sf_destroy(sf_model *model) {
    if (model == NULL) return;
    pool_destroy(model->threads);
    destroy_items(model->items);
    free_kv_cache(model);
    free_scratch(model);
    for (int32_t i = 0; i < model->num_shapes; i++) free_attention_work(&model->shapes[i].work);
    for (int32_t i = 0; model->ops != NULL && i < model->num_ops; i++) {
        for (int32_t m = 0; m < model->ops[i].num_matrices; m++) {
            matrix *one = &model->ops[i].matrices[m];
            for (int32_t t = 0; one->rare != NULL && t < model->num_threads; t++) {
                free_rare_weights(&one->rare[t]);
            }
            free(one->rare);
            free(one->shares);
        }
        free(model->ops[i].matrices);
        free(model->ops[i].expert_first);
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
