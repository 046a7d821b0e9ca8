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
    for (int32_t i = 0; i < model->num_ops; i++) {
        program_op *p = &model->ops[i];
        atomic_store(&p->next_item, 0);
        for (int32_t m = 0; m < p->num_matrices; m++) reset_claims(&p->matrices[m]);
    }
    model->batch = batch;
    model->logits = (sf_buffer){.width = model->vocab_size,
                                .dtype = SF_FLOAT32,
                                .by_logits_rows = 1,
                                .stride = model->vocab_size,
                                .data = logits};
    pool_run(model->threads, walk, model);
    return 0;
}
