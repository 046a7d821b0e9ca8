#include <stdlib.h>

#include "errors.h"
#include "memory.h"
#include "model.h"
#include "pointwise.h"

enum { LINE = 64 };

/* Rows lie an odd number of cache lines apart, so that the same column of neighbouring rows does
 * not fall into the same set of a cache. */
int32_t padded_stride(int32_t width, int32_t dtype) {
    int32_t per_line = (int32_t)(LINE / element_bytes(dtype));
    int32_t lines = (width + LANES + per_line - 1) / per_line;
    return (lines | 1) * per_line;
}

/* Zeroed, so that padding is; the rows that were there are lost. */
static int resize_buffer(sf_buffer *buffer, int64_t old_rows, int64_t num_rows) {
    buffer->stride = padded_stride(buffer->width, buffer->dtype);
    size_t row_bytes = (size_t)(buffer->stride * element_bytes(buffer->dtype));
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
        size_t num_values = (size_t)num_rows * 2 * (size_t)rope->num_frequencies;
        rope->values = malloc(num_values * sizeof(float) + 1);
        if (rope->values == NULL) return fail("out of memory for activations");
    }
    return 0;
}

static int32_t grown(int32_t capacity, int32_t needed) {
    return needed > 2 * capacity ? needed : 2 * capacity;
}

int32_t most_rows_of(const sf_batch *batch) {
    return batch->num_tokens > batch->num_logits_rows ? batch->num_tokens : batch->num_logits_rows;
}

int ensure_capacity(sf_model *model, const sf_batch *batch) {
    if (batch->num_tokens > model->token_capacity) {
        int32_t old = model->token_capacity, rows = grown(old, batch->num_tokens);
        model->token_capacity = 0; /* until all have grown */
        if (resize_buffers(model, false, old, rows) != 0) return -1;
        if (resize_ropes(model, rows) != 0) return -1;
        model->token_capacity = rows;
    }
    if (batch->num_logits_rows > model->logits_capacity) {
        int32_t old = model->logits_capacity, rows = grown(old, batch->num_logits_rows);
        model->logits_capacity = 0;
        if (resize_buffers(model, true, old, rows) != 0) return -1;
        model->logits_capacity = rows;
    }
    int32_t most_rows = most_rows_of(batch);
    if (most_rows > model->expert_capacity) {
        int32_t old = model->expert_capacity, rows = grown(old, most_rows);
        model->expert_capacity = 0;
        if (resize_experts(model, old, rows) != 0) return -1;
        model->expert_capacity = rows;
    }
    return 0;
}

void free_scratch(sf_model *model) {
    if (model->buffers != NULL) {
        resize_buffers(model, false, model->token_capacity, 0);
        resize_buffers(model, true, model->logits_capacity, 0);
    }
    resize_experts(model, model->expert_capacity, 0);
    free(model->experts.experts);
    free(model->experts.places);
    free(model->experts.shares);
    for (int32_t i = 0; i < model->num_ropes; i++) free(model->ropes[i].values);
}
