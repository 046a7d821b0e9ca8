#include "check.h"

#include <stdbool.h>
#include <stddef.h>

#include "errors.h"

/* ── programs ──────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const sf_buffer *buffers;
    int32_t num_buffers, dtype;
    int32_t op; /* the number of the op that is checked */
} program_view;

static const sf_buffer *find(const program_view *p, int32_t index) {
    return index >= 0 && index < p->num_buffers ? &p->buffers[index] : NULL;
}

static int check_buffer(const program_view *p, int32_t index, int32_t width, bool is_multiplied) {
    const sf_buffer *buffer = find(p, index);
    if (buffer == NULL) return fail("op %d: there is no buffer %d", p->op, index);
    if (buffer->width != width) {
        return fail("op %d: buffer %d is %d wide, not %d", p->op, index, buffer->width, width);
    }
    if (is_multiplied && buffer->dtype != p->dtype) {
        return fail("op %d: buffer %d must have the dtype of the model", p->op, index);
    }
    return 0;
}

/* That two buffers have a row for each other's rows. */
static int check_rows(const program_view *p, int32_t one, int32_t other) {
    if (find(p, one)->by_logits_rows == find(p, other)->by_logits_rows) return 0;
    return fail("op %d: buffers %d and %d differ in rows", p->op, one, other);
}

static int check_residual(const program_view *p, const sf_op *op, int32_t width) {
    if (op->residual < 0) return 0;
    if (check_buffer(p, op->residual, width, false) != 0) return -1;
    return check_rows(p, op->residual, op->output);
}

static int32_t width_of(const program_view *p, int32_t index) {
    const sf_buffer *buffer = find(p, index);
    return buffer == NULL ? -1 : buffer->width;
}

static int check_linear(const program_view *p, const sf_op *op) {
    int32_t outputs = op->is_gated ? op->out_width / 2 : op->out_width;
    if (op->in_width < 1 || outputs < 1) return fail("op %d: a width is below 1", p->op);
    if (op->input == op->output) return fail("op %d: writes what it multiplies", p->op);
    if (check_buffer(p, op->input, op->in_width, true) != 0) return -1;
    if (check_buffer(p, op->output, outputs, false) != 0) return -1;
    if (check_rows(p, op->input, op->output) != 0) return -1;
    return check_residual(p, op, outputs);
}

static int check_heads(const program_view *p, const sf_op *op) {
    if (op->num_kv_heads < 1 || op->head_dim < 1 || op->num_heads < 1 ||
        op->num_heads % op->num_kv_heads != 0) {
        return fail("op %d: %d heads of %d do not divide among %d KV heads", p->op, op->num_heads,
                    op->head_dim, op->num_kv_heads);
    }
    if (2 * op->num_frequencies > op->head_dim || op->layer < 0) {
        return fail("op %d: rope or layer is out of range", p->op);
    }
    int32_t width = (op->num_heads + 2 * op->num_kv_heads) * op->head_dim;
    if (check_buffer(p, op->input, width, true) != 0) return -1;
    if (find(p, op->input)->by_logits_rows) return fail("op %d: attention by logits rows", p->op);
    if (op->kind == SF_ROPE_STORE_KV) return 0;
    if (!(op->scale > 0)) return fail("op %d: scores are scaled by %g", p->op, (double)op->scale);
    if (check_buffer(p, op->output, op->num_heads * op->head_dim, true) != 0) return -1;
    return check_rows(p, op->input, op->output);
}

static int check_experts(const program_view *p, const sf_op *op) {
    if (op->num_experts < 1 || op->top_k < 1 || op->top_k > op->num_experts ||
        op->inner_width < 1) {
        return fail("op %d: %d of %d experts of width %d", p->op, op->top_k, op->num_experts,
                    op->inner_width);
    }
    int32_t width = width_of(p, op->input);
    if (check_buffer(p, op->input, width, true) != 0) return -1;
    if (check_buffer(p, op->output, width, false) != 0) return -1;
    if (check_rows(p, op->input, op->output) != 0) return -1;
    return check_residual(p, op, width);
}

static int check_table(const program_view *p, const sf_op *op, int32_t num_rows) {
    if (op->table == NULL || op->num_rows < num_rows || op->offset < 0) {
        return fail("op %d: a table of %d rows, not %d", p->op, op->num_rows, num_rows);
    }
    if (check_buffer(p, op->output, width_of(p, op->output), false) != 0) return -1;
    if (find(p, op->output)->by_logits_rows) return fail("op %d: embeds logits rows", p->op);
    return 0;
}

static int check_op(const program_view *p, const sf_op *op, int32_t vocab_size) {
    int32_t out = width_of(p, op->output);
    switch (op->kind) {
    case SF_EMBED: return check_table(p, op, 1);
    case SF_EMBED_POSITIONS: return check_table(p, op, op->offset + 1);
    case SF_NORM:
        if (op->weight == NULL) return fail("op %d: a norm without weight", p->op);
        if (check_buffer(p, op->input, out, false) != 0) return -1;
        if (check_buffer(p, op->output, out, false) != 0) return -1;
        if (check_rows(p, op->input, op->output) != 0) return -1;
        return check_residual(p, op, out);
    case SF_LINEAR: return check_linear(p, op);
    case SF_LOGITS:
        if (op->out_width != vocab_size) return fail("op %d: logits of another width", p->op);
        if (check_buffer(p, op->input, op->in_width, true) != 0) return -1;
        if (!find(p, op->input)->by_logits_rows) return fail("op %d: logits by tokens", p->op);
        return 0;
    case SF_ROPE_STORE_KV:
    case SF_PAGED_ATTENTION: return check_heads(p, op);
    case SF_GATED_ACTIVATION:
        if (check_buffer(p, op->input, 2 * out, false) != 0) return -1;
        if (check_buffer(p, op->output, out, false) != 0) return -1;
        return check_rows(p, op->input, op->output);
    case SF_GATHER_ROWS:
        if (check_buffer(p, op->input, out, false) != 0) return -1;
        if (check_buffer(p, op->output, out, false) != 0) return -1;
        if (find(p, op->input)->by_logits_rows || !find(p, op->output)->by_logits_rows) {
            return fail("op %d: gathers from tokens to logits rows", p->op);
        }
        return 0;
    case SF_MIXTURE_OF_EXPERTS: return check_experts(p, op);
    }
    return fail("op %d: kind %d is not known", p->op, op->kind);
}

int check_program(const sf_op *ops, int32_t num_ops, const sf_buffer *buffers, int32_t num_buffers,
                  int32_t dtype, int32_t vocab_size) {
    if (num_ops < 1 || num_buffers < 1 || vocab_size < 1) return fail("the program is empty");
    for (int32_t i = 0; i < num_buffers; i++) {
        if (buffers[i].width < 1) return fail("buffer %d is %d wide", i, buffers[i].width);
        if (buffers[i].dtype != SF_FLOAT32 && buffers[i].dtype != SF_BFLOAT16) {
            return fail("buffer %d: dtype %d is not known", i, buffers[i].dtype);
        }
    }
    for (int32_t i = 0; i < num_ops; i++) {
        program_view view = {buffers, num_buffers, dtype, i};
        if (check_op(&view, &ops[i], vocab_size) != 0) return -1;
    }
    if (ops[num_ops - 1].kind != SF_LOGITS) return fail("the last op is not the logits");
    return 0;
}

/* ── batches ───────────────────────────────────────────────────────────────────────────────── */

static int check_sequence(const sf_batch *b, batch_limits limits, int32_t s) {
    int32_t first = b->cu_seqlens_q[s], end = b->cu_seqlens_q[s + 1];
    if (first < 0 || end <= first || end > b->num_tokens) {
        return fail("sequence %d: tokens %d to %d of %d", s, first, end, b->num_tokens);
    }
    int32_t kv_len = b->kv_lens[s];
    int64_t room = (int64_t)b->max_num_blocks * limits.block_size;
    if (kv_len < end - first || kv_len > room) {
        return fail("sequence %d: %d tokens in the cache, %d of this batch, room for %lld", s,
                    kv_len, end - first, (long long)room);
    }
    const int32_t *table = b->block_tables + (int64_t)s * b->max_num_blocks;
    for (int32_t i = 0; i * (int64_t)limits.block_size < kv_len; i++) {
        if (table[i] < 0 || table[i] >= limits.num_blocks) {
            return fail("sequence %d: block %d is outside 0..%lld", s, table[i],
                        (long long)limits.num_blocks - 1);
        }
    }
    return 0;
}

static int check_tokens(const sf_batch *b, batch_limits limits) {
    int64_t num_slots = limits.num_blocks * limits.block_size;
    for (int32_t t = 0; t < b->num_tokens; t++) {
        if (b->token_ids[t] < 0 || b->token_ids[t] >= limits.vocab_size) {
            return fail("token %d: id %d is outside the vocabulary of %d", t, b->token_ids[t],
                        limits.vocab_size);
        }
        if (b->positions[t] < 0 || b->positions[t] >= limits.num_positions) {
            return fail("token %d: position %d is outside the table of %d", t, b->positions[t],
                        limits.num_positions);
        }
        if (b->slot_mapping[t] < 0 || b->slot_mapping[t] >= num_slots) {
            return fail("token %d: slot %d is outside the cache of %lld", t, b->slot_mapping[t],
                        (long long)num_slots);
        }
    }
    return 0;
}

int check_batch(const sf_batch *b, batch_limits limits) {
    if (b->num_tokens < 1 || b->num_seqs < 1 || b->max_num_blocks < 1 || b->num_logits_rows < 0 ||
        b->cu_seqlens_q[0] != 0 || b->cu_seqlens_q[b->num_seqs] != b->num_tokens) {
        return fail("%d tokens of %d sequences do not add up", b->num_tokens, b->num_seqs);
    }
    for (int32_t s = 0; s < b->num_seqs; s++) {
        if (check_sequence(b, limits, s) != 0) return -1;
    }
    for (int32_t i = 0; i < b->num_logits_rows; i++) {
        if (b->logits_index[i] < 0 || b->logits_index[i] >= b->num_tokens) {
            return fail("logits row %d: token %d of %d", i, b->logits_index[i], b->num_tokens);
        }
    }
    return check_tokens(b, limits);
}
