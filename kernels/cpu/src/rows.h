/* Ops in which each row is made of one row. */
#ifndef SPLITFUSE_ROWS_H
#define SPLITFUSE_ROWS_H

#include "items.h"
#include "splitfuse_cpu.h"

/* See kernels/embed.py: out[t] = table[token_ids[t]]. */
void embed(const sf_op *op, int32_t table_dtype, const int32_t *token_ids, const sf_buffer *out,
           row_range rows);

/* See kernels/embed_positions.py: out[t] += table[positions[t] + offset]. */
void embed_positions(const sf_op *op, int32_t table_dtype, const int32_t *positions,
                     const sf_buffer *out, row_range rows);

/* See kernels/norm.py; `residual` NULL: none. */
void norm(const sf_op *op, const sf_buffer *in, const sf_buffer *residual, const sf_buffer *out,
          row_range rows);

/* See kernels/gated_activation.py. */
void gated_activation(const sf_op *op, const sf_buffer *in, const sf_buffer *out, row_range rows);

/* See kernels/gather_rows.py. */
void gather_rows(const int32_t *index, const sf_buffer *in, const sf_buffer *out, row_range rows);

#endif
