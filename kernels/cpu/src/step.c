#include "errors.h"
#include "model.h"
#include "rows.h"

static const sf_buffer *buffer_of(const sf_model *model, int32_t index) {
    return index < 0 ? NULL : &model->buffers[index];
}

static int32_t rows_of(const sf_model *model, int32_t index) {
    return model->buffers[index].by_logits_rows ? model->batch->num_logits_rows
                                                : model->batch->num_tokens;
}

static void run_linear(sf_model *model, const program_op *p, walker *w, kv_ahead *ahead) {
    const sf_op *op = &p->op;
    bool is_last = op->kind == SF_LOGITS;
    epilogue end = {op->bias, op->activation, op->soft_cap, buffer_of(model, op->residual)};
    multiply(&p->matrices[0], buffer_of(model, op->input),
             is_last ? &model->logits : buffer_of(model, op->output), &end,
             rows_of(model, op->input), w, ahead);
}

static void run_attention(sf_model *model, const program_op *p, walker *w) {
    paged_attention(&p->op, model->batch, buffer_of(model, p->op.input),
                    buffer_of(model, p->op.output), &model->layers[p->op.layer],
                    &model->shapes[p->work].work, w);
}

static void run_experts(sf_model *model, const program_op *p, walker *w, kv_ahead *ahead) {
    const sf_op *op = &p->op;
    mixture_of_experts(op, p->matrices, buffer_of(model, op->input),
                       buffer_of(model, op->residual), buffer_of(model, op->output),
                       &model->experts, p->expert_first, rows_of(model, op->input), w, ahead);
}

/* An op of a model that runs a step. */
typedef struct {
    const sf_model *model;
    const program_op *p;
} op_call;

static void run_rows(void *context, row_range rows) {
    const op_call *call = context;
    const sf_model *model = call->model;
    const sf_op *op = &call->p->op;
    const sf_buffer *in = buffer_of(model, op->input), *out = buffer_of(model, op->output);
    int32_t angles = call->p->angles;
    switch (op->kind) {
    case SF_EMBED: embed(op, model->dtype, model->batch->token_ids, out, rows); return;
    case SF_EMBED_POSITIONS:
        embed_positions(op, model->dtype, model->batch->positions, out, rows);
        return;
    case SF_NORM: norm(op, in, buffer_of(model, op->residual), out, rows); return;
    case SF_GATED_ACTIVATION: gated_activation(op, in, out, rows); return;
    case SF_GATHER_ROWS: gather_rows(model->batch->logits_index, in, out, rows); return;
    case SF_ROPE_STORE_KV:
        rope_store_kv(op, model->batch, in, angles < 0 ? NULL : model->ropes[angles].values,
                      &model->layers[op->layer], rows);
        return;
    }
}

static void run_by_rows(const sf_model *model, const program_op *p, walker *w) {
    bool turns = p->op.kind == SF_ROPE_STORE_KV; /* in place: it has no output */
    op_call call = {model, p};
    for_rows(w, rows_of(model, turns ? p->op.input : p->op.output), run_rows, &call);
}

/* From op `begin` to the next attention. Experts are not counted: which are chosen is not known. */
static kv_ahead look_ahead_from(const sf_model *model, int32_t begin, const walker *w) {
    way until = {0};
    for (int32_t i = begin; i < model->num_ops; i++) {
        const sf_op *op = &model->ops[i].op;
        if (op->kind == SF_LINEAR) {
            const matrix *m = &model->ops[i].matrices[0];
            until.num_lines += lines_ahead(m, rows_of(model, op->input));
            until.weight_bytes += m->num_blocks * m->block_bytes;
        } else if (op->kind == SF_PAGED_ATTENTION) {
            return look_ahead(op, &model->layers[op->layer], model->batch,
                              &model->shapes[model->ops[i].work].work, until, w->thread,
                              num_walkers(w));
        }
    }
    return (kv_ahead){0};
}

static void run_op(sf_model *model, int32_t number, walker *w, kv_ahead *ahead) {
    const program_op *p = &model->ops[number];
    switch (p->op.kind) {
    case SF_LINEAR:
    case SF_LOGITS: run_linear(model, p, w, ahead); return;
    case SF_PAGED_ATTENTION:
        run_attention(model, p, w);
        *ahead = look_ahead_from(model, number + 1, w);
        return;
    case SF_MIXTURE_OF_EXPERTS: run_experts(model, p, w, ahead); return;
    default: run_by_rows(model, p, w);
    }
}

typedef struct {
    const int32_t *positions;
    const rope_table *rope;
} angles_call;

static void find_angles(void *context, row_range tokens) {
    const angles_call *call = context;
    const rope_table *rope = call->rope;
    rope_angles(call->positions, tokens.begin, tokens.end, rope->frequencies,
                rope->num_frequencies, rope->scale, rope->values);
}

static void walk(void *context, int thread) {
    sf_model *model = context;
    walker w = walk_from_start(model->items, thread);
    for (int32_t i = 0; i < model->num_ropes; i++) {
        angles_call call = {model->batch->positions, &model->ropes[i]};
        for_rows(&w, model->batch->num_tokens, find_angles, &call);
    }
    kv_ahead ahead = look_ahead_from(model, 0, &w);
    for (int32_t i = 0; i < model->num_ops; i++) run_op(model, i, &w, &ahead);
    if (thread == 0) end_step(&w);
}

static int plan_all_attention(sf_model *model, const sf_batch *batch) {
    for (int32_t i = 0; i < model->num_shapes; i++) {
        attention_shape *shape = &model->shapes[i];
        const sf_op *op = &model->ops[shape->op].op;
        if (plan_attention(&shape->work, op, batch, &model->layers[op->layer],
                           model->num_threads) != 0) {
            return fail("out of memory for attention");
        }
    }
    return 0;
}

/* The most items that a phase has in one queue. Those by rows are few. */
static int64_t max_items(const sf_model *model) {
    int64_t most = most_rows_of(model->batch);
    for (int32_t i = 0; i < model->num_shapes; i++) {
        int64_t items = model->shapes[i].work.num_items / model->num_threads + 1;
        if (items > most) most = items;
    }
    for (int32_t i = 0; i < model->num_ops; i++) {
        const program_op *p = &model->ops[i];
        for (int32_t m = 0; m < p->num_matrices; m++) {
            int64_t items = max_items_of_matrix(&p->matrices[m], rows_of(model, p->op.input));
            if (items > most) most = items;
        }
    }
    return most;
}

int32_t sf_step(sf_model *model, const sf_batch *batch, float *logits) {
    if (model->num_missing_weights > 0) {
        return fail("%d weights are missing", model->num_missing_weights);
    }
    if (check_batch(batch, model->limits) != 0) return -1;
    if (ensure_capacity(model, batch) != 0) return -1;
    if (plan_all_attention(model, batch) != 0) return -1;
    model->batch = batch;
    model->logits = (sf_buffer){.width = model->vocab_size,
                                .dtype = SF_FLOAT32,
                                .by_logits_rows = 1,
                                .stride = model->vocab_size,
                                .data = logits};
    if (begin_step(model->items, max_items(model)) != 0) return fail("out of memory for a step");
    pool_run(model->threads, walk, model);
    return 0;
}
