#include "rows.h"

#include <math.h>

#include "pointwise.h"

INLINE float load_one(const char *row, int32_t dtype, int32_t column) {
    if (dtype == SF_BFLOAT16) return bf16_to_float(((const bf16 *)row)[column]);
    return ((const float *)row)[column];
}

/* The rows of a table are not padded: the last lanes are read one by one. */
INLINE vec load_table(const char *row, int32_t dtype, int32_t column, int32_t count) {
    if (count >= LANES) return load_element(row, dtype, column);
    float lanes[LANES] = {0};
    for (int32_t i = 0; i < count; i++) lanes[i] = load_one(row, dtype, column + i);
    return load(lanes);
}

static const char *table_row(const sf_op *op, int32_t dtype, int64_t row, int32_t width) {
    return (const char *)op->table + row * width * (dtype == SF_BFLOAT16 ? 2 : 4);
}

void embed(const sf_op *op, int32_t table_dtype, const int32_t *token_ids, const sf_buffer *out,
           row_range rows) {
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const char *from = table_row(op, table_dtype, token_ids[row], out->width);
        char *to = row_of(out, row);
        for (int32_t column = 0; column < out->width; column += LANES) {
            int32_t count = out->width - column;
            store_element(to, out->dtype, column, load_table(from, table_dtype, column, count),
                          count);
        }
    }
}

void embed_positions(const sf_op *op, int32_t table_dtype, const int32_t *positions,
                     const sf_buffer *out, row_range rows) {
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const char *from =
            table_row(op, table_dtype, (int64_t)positions[row] + op->offset, out->width);
        char *to = row_of(out, row);
        for (int32_t column = 0; column < out->width; column += LANES) {
            int32_t count = out->width - column;
            vec sum = load_element(to, out->dtype, column) +
                      load_table(from, table_dtype, column, count);
            store_element(to, out->dtype, column, sum, count);
        }
    }
}

/* ── norm ──────────────────────────────────────────────────────────────────────────────────── */

static void add_row(const sf_buffer *in, const sf_buffer *residual, int32_t row) {
    const char *from = row_of(in, row);
    char *to = row_of(residual, row);
    for (int32_t column = 0; column < in->width; column += LANES) {
        vec sum = load_element(to, residual->dtype, column) +
                  load_element(from, in->dtype, column);
        store_element(to, residual->dtype, column, sum, in->width - column);
    }
}

/* Padding is zero, so whole vectors may be summed. */
static float mean_of_row(const char *row, int32_t dtype, int32_t width) {
    vec sum = splat(0.0f);
    for (int32_t column = 0; column < width; column += LANES) {
        sum += load_element(row, dtype, column);
    }
    return sum_lanes(sum) / (float)width;
}

/* Mean of (x - centre)^2. */
static float mean_square(const char *row, int32_t dtype, int32_t width, float centre) {
    vec sum = splat(0.0f);
    for (int32_t column = 0; column < width; column += LANES) {
        vec x = load_element(row, dtype, column) - centre;
        if (width - column < LANES) x = blend(lane_numbers() < width - column, x, splat(0.0f));
        sum = fma_vec(x, x, sum);
    }
    return sum_lanes(sum) / (float)width;
}

void norm(const sf_op *op, const sf_buffer *in, const sf_buffer *residual, const sf_buffer *out,
          row_range rows) {
    int32_t width = in->width;
    for (int32_t row = rows.begin; row < rows.end; row++) {
        if (residual != NULL) add_row(in, residual, row);
        const sf_buffer *source = residual != NULL ? residual : in;
        const char *from = row_of(source, row);
        char *to = row_of(out, row);
        float mean = op->norm == SF_LAYER ? mean_of_row(from, source->dtype, width) : 0.0f;
        float scale = 1.0f / sqrtf(mean_square(from, source->dtype, width, mean) + op->eps);
        for (int32_t column = 0; column < width; column += LANES) {
            int32_t count = width - column;
            vec y = (load_element(from, source->dtype, column) - mean) * scale;
            y *= load_table((const char *)op->weight, SF_FLOAT32, column, count);
            if (op->bias != NULL) {
                y += load_table((const char *)op->bias, SF_FLOAT32, column, count);
            }
            store_element(to, out->dtype, column, y, count);
        }
    }
}

/* ── gate, gather ──────────────────────────────────────────────────────────────────────────── */

void gated_activation(const sf_op *op, const sf_buffer *in, const sf_buffer *out, row_range rows) {
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const char *from = row_of(in, row);
        char *to = row_of(out, row);
        for (int32_t column = 0; column < out->width; column += LANES) {
            vec gate = load_element(from, in->dtype, column);
            vec up = load_element(from, in->dtype, out->width + column);
            store_element(to, out->dtype, column, activate_vec(op->activation, gate) * up,
                          out->width - column);
        }
    }
}

void gather_rows(const int32_t *index, const sf_buffer *in, const sf_buffer *out, row_range rows) {
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const char *from = row_of(in, index[row]);
        char *to = row_of(out, row);
        for (int32_t column = 0; column < in->width; column += LANES) {
            store_element(to, out->dtype, column, load_element(from, in->dtype, column),
                          in->width - column);
        }
    }
}
