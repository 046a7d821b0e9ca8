#include "experts.h"

#include <math.h>

#include "pointwise.h"

static float *score_row(const expert_scratch *scratch, int32_t row) {
    return (float *)row_of(&scratch->scores, row);
}

/* The best expert, the lowest of equals. */
static int32_t best_expert(const float *scores, int32_t num_experts) {
    int32_t best = 0;
    for (int32_t e = 1; e < num_experts; e++) {
        if (scores[e] > scores[best]) best = e;
    }
    return best;
}

/* Softmax over all experts, of which the best stay and are made to sum to 1: the sum over all cancels
 * out. */
static void choose_experts(const sf_op *op, const expert_scratch *scratch, int32_t row) {
    float *scores = score_row(scratch, row), *shares = scratch->shares + (int64_t)row * op->top_k;
    int32_t *experts = scratch->experts + (int64_t)row * op->top_k;
    float best = scores[best_expert(scores, op->num_experts)], sum = 0;
    for (int32_t i = 0; i < op->top_k; i++) {
        experts[i] = best_expert(scores, op->num_experts);
        shares[i] = expf(scores[experts[i]] - best);
        sum += shares[i];
        scores[experts[i]] = -INFINITY;
    }
    for (int32_t i = 0; i < op->top_k; i++) shares[i] /= sum;
}

/* Give each choice its row among those of its expert, in the order of the rows. */
static void place_rows(const sf_op *op, const expert_scratch *scratch, int32_t *first,
                       int32_t num_rows) {
    int64_t num_choices = (int64_t)num_rows * op->top_k;
    memset(first, 0, (size_t)(op->num_experts + 1) * sizeof *first);
    for (int64_t i = 0; i < num_choices; i++) first[scratch->experts[i] + 1]++;
    for (int32_t e = 0; e < op->num_experts; e++) first[e + 1] += first[e];
    for (int64_t i = 0; i < num_choices; i++) scratch->places[i] = first[scratch->experts[i]]++;
    for (int32_t e = op->num_experts; e > 0; e--) first[e] = first[e - 1];
    first[0] = 0;
}

static void sort_rows(const sf_op *op, const expert_scratch *scratch, const sf_buffer *in,
                      row_range rows) {
    size_t row_bytes = (size_t)in->width * (in->dtype == SF_BFLOAT16 ? 2 : 4);
    for (int32_t row = rows.begin; row < rows.end; row++) {
        for (int32_t i = 0; i < op->top_k; i++) {
            int32_t place = scratch->places[(int64_t)row * op->top_k + i];
            memcpy(row_of(&scratch->sorted, place), row_of(in, row), row_bytes);
        }
    }
}

static void combine_rows(const sf_op *op, const expert_scratch *scratch, const sf_buffer *residual,
                         const sf_buffer *out, row_range rows) {
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const int32_t *places = scratch->places + (int64_t)row * op->top_k;
        const float *shares = scratch->shares + (int64_t)row * op->top_k;
        for (int32_t column = 0; column < out->width; column += LANES) {
            vec sum = splat(0.0f);
            for (int32_t i = 0; i < op->top_k; i++) {
                vec y = load_element(row_of(&scratch->outputs, places[i]), SF_FLOAT32, column);
                sum = fma_vec(splat(shares[i]), y, sum);
            }
            if (residual != NULL) {
                sum += load_element(row_of(residual, row), residual->dtype, column);
            }
            store_element(row_of(out, row), out->dtype, column, sum, out->width - column);
        }
    }
}

/* The same buffer from a row on. */
static sf_buffer from_row(const sf_buffer *buffer, int32_t row) {
    sf_buffer rest = *buffer;
    rest.data = row_of(buffer, row);
    return rest;
}

/* One matrix of each expert, over the rows that chose it. */
static void multiply_experts(const sf_op *op, const matrix *matrices, const sf_buffer *in,
                             const sf_buffer *out, int32_t activation, const int32_t *first,
                             walker *w, kv_ahead *ahead) {
    epilogue end = {.activation = activation};
    for (int32_t e = 0; e < op->num_experts; e++) {
        int32_t begin = first[e], num_rows = first[e + 1] - begin;
        sf_buffer rows_in = from_row(in, begin), rows_out = from_row(out, begin);
        multiply(&matrices[2 * e], &rows_in, &rows_out, &end, num_rows, w, ahead);
    }
}

/* What the tasks by rows work on. */
typedef struct {
    const sf_op *op;
    const expert_scratch *scratch;
    const sf_buffer *in, *residual, *out;
    int32_t *first;
    int32_t num_rows;
} experts_call;

static void choose_task(void *context, row_range rows) {
    const experts_call *call = context;
    for (int32_t row = rows.begin; row < rows.end; row++) {
        choose_experts(call->op, call->scratch, row);
    }
}

static void place_task(void *context, row_range once) {
    const experts_call *call = context;
    (void)once;
    place_rows(call->op, call->scratch, call->first, call->num_rows);
}

static void sort_task(void *context, row_range rows) {
    const experts_call *call = context;
    sort_rows(call->op, call->scratch, call->in, rows);
}

static void combine_task(void *context, row_range rows) {
    const experts_call *call = context;
    combine_rows(call->op, call->scratch, call->residual, call->out, rows);
}

void mixture_of_experts(const sf_op *op, const matrix *matrices, const sf_buffer *in,
                        const sf_buffer *residual, const sf_buffer *out,
                        const expert_scratch *scratch, int32_t *first, int32_t num_rows,
                        walker *w, kv_ahead *ahead) {
    epilogue plain = {0};
    experts_call call = {op, scratch, in, residual, out, first, num_rows};
    multiply(&matrices[0], in, &scratch->scores, &plain, num_rows, w, ahead);
    for_rows(w, num_rows, choose_task, &call);
    for_rows(w, 1, place_task, &call);
    for_rows(w, num_rows, sort_task, &call);
    multiply_experts(op, matrices + 1, &scratch->sorted, &scratch->inner, op->activation, first,
                     w, ahead);
    multiply_experts(op, matrices + 2, &scratch->inner, &scratch->outputs, SF_NONE, first, w,
                     ahead);
    for_rows(w, num_rows, combine_task, &call);
}
