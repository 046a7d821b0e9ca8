/* Matrices of weights in the layout that they are multiplied from, and the multiplication.
 *
 * A matrix [out_width, in_width] is cut into blocks of BLOCK_COLUMNS outputs. A block holds, for
 * each input (bfloat16: for each pair of inputs), the weights of its outputs side by side:
 *
 *     float32  [in_width][BLOCK_COLUMNS]      bfloat16  [ceil(in_width / 2)][BLOCK_COLUMNS][2]
 *
 * so that one broadcast of an activation multiplies whole registers of weights. Where there is a
 * weight code, bfloat16 is kept in that, with an even number of pairs. Outputs beyond out_width and
 * inputs beyond in_width are zero. A gated matrix [gate | up] interleaves the two: each block has
 * LANES outputs of the gate, then the same of up, and makes LANES outputs.
 *
 * Each thread has a contiguous share of the blocks, in an arena of its own in which the shares of all
 * matrices lie in the order of the program: what is read next is what lies next, so prefetching
 * runs across the end of an op. A thread that is through with its share takes blocks of another's;
 * see items.h.
 */
#ifndef SPLITFUSE_MATRIX_H
#define SPLITFUSE_MATRIX_H

#include "items.h"
#include "kv_ahead.h"
#include "simd.h"
#include "splitfuse_cpu.h"
#include "weight_code.h"

enum {
    BLOCK_COLUMNS = 2 * LANES,
    /* Rows multiplied at once: two sums each, and three registers for the rest. */
    MAX_GROUP_ROWS = LANES == 16 ? 12 : 6,
    /* Groups of an item: their sums are kept until it is known who may store them. */
    MAX_ITEM_GROUPS = 4,
    /* Rows that share one pass over the weights; their activations stay in L2 or L3. */
    PANEL_ROWS = 20 * MAX_GROUP_ROWS,
};

typedef struct {
    int32_t dtype, in_width, out_width, is_gated;
    int32_t num_blocks;
    int64_t block_bytes;
    bool is_coded;
    char **shares; /* [num_threads] where a thread's first block lies */
    weight_code code;
    rare_weights *rare; /* [num_threads] of a thread's blocks */
    int32_t num_threads;
} matrix;

/* What follows the multiplication; see kernels/linear.py. */
typedef struct {
    const float *bias; /* [out_width] or NULL */
    int32_t activation;
    float soft_cap;            /* 0: none */
    const sf_buffer *residual; /* or NULL */
} epilogue;

/* Describe a matrix; its shares come later. */
matrix describe_matrix(int32_t dtype, int32_t in_width, int32_t out_width, int32_t is_gated,
                       int32_t num_threads);

/* The blocks of thread t are [share_begin(t), share_begin(t + 1)). */
int32_t share_begin(const matrix *m, int32_t thread);

/* Look at row-major weights [out_width, in_width] before they are packed. */
void prepare_packing(matrix *m, const void *weights);

/* Pack the share of one thread. Returns 0, or -1 without memory. */
int32_t pack_share(const matrix *m, const void *weights, int32_t thread);

/* The most items that a queue of `multiply` has. */
int64_t max_items_of_matrix(const matrix *m, int32_t num_rows);

/* Lines that the loops that multiply so many rows fetch beside weights, in all threads together; 0
 * for rows so few that the loops wait for the weights. */
int64_t lines_ahead(const matrix *m, int32_t num_rows);

/* out[row] = activation(in[row] · weightsᵀ + bias) + residual[row] for all rows. A phase of its own;
 * run by all threads. A row's result depends neither on how many rows there are nor on who computes
 * it: each output is one chain of sums in the order of the inputs. `ahead` is fetched meanwhile. */
void multiply(const matrix *m, const sf_buffer *in, const sf_buffer *out, const epilogue *end,
              int32_t num_rows, walker *w, kv_ahead *ahead);

#endif
