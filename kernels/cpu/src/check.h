/* What must hold before a pointer is followed. */
#ifndef SPLITFUSE_CHECK_H
#define SPLITFUSE_CHECK_H

#include "splitfuse_cpu.h"

/* That ops name buffers that exist, with the widths, rows and dtypes that their kernels rely on.
 * Returns 0, or -1 with the error kept. */
int check_program(const sf_op *ops, int32_t num_ops, const sf_buffer *buffers, int32_t num_buffers,
                  int32_t dtype, int32_t vocab_size);

/* What a batch is checked against. */
typedef struct {
    int32_t vocab_size;
    int32_t num_positions; /* rows of the smallest table of positions; INT32_MAX: there is none */
    int32_t block_size;
    int64_t num_blocks;
} batch_limits;

/* That ids, positions, blocks, slots and rows are in range. Returns 0, or -1 with the error kept. */
int check_batch(const sf_batch *batch, batch_limits limits);

#endif
