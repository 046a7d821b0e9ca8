/* The KV cache, and the two ops that know its layout.
 *
 * A layer's cache holds tiles of KEYS_PER_TILE tokens of one KV head:
 *
 *     [extents][num_kv_heads][blocks of the extent][tiles_per_block] tiles,
 *     tiles_per_block = ceil(block_size / 16)
 *
 * An extent is BLOCKS_PER_EXTENT blocks, the last one what is left. So where a sequence's blocks
 * follow each other, so do the keys that a head reads; and what is written to few blocks lies close
 * together.
 *
 *     bfloat16   K tile [key_dim / 2][16 keys][2]      V tile [16 / 2][value_dim][2]
 *     float32    K tile [key_dim][16 keys]             V tile [16][value_dim]
 *
 * so that one load brings 16 keys' (or values') worth of what one broadcast of q (or p) multiplies.
 * key_dim is head_dim rounded up to 2, value_dim to 16. Padding is zero and stays zero. A block of
 * fewer tokens than a multiple of 16 leaves the rest of its last tile unused.
 */
#ifndef SPLITFUSE_ATTENTION_H
#define SPLITFUSE_ATTENTION_H

#include <stdatomic.h>

#include "items.h"
#include "splitfuse_cpu.h"

enum { KEYS_PER_TILE = 16, BLOCKS_PER_EXTENT = 32 };

/* One layer. */
typedef struct {
    int32_t dtype, num_kv_heads, head_dim, block_size;
    int32_t tiles_per_block, key_dim, value_dim;
    int64_t num_blocks;
    void *keys, *values;
} kv_layer;

/* Elements of K (and of V) of one block of one layer. */
int64_t keys_per_block_elements(const kv_layer *kv);
int64_t values_per_block_elements(const kv_layer *kv);

/* Cosine and sine, times `scale`, of tokens [begin, end): out[token][2][num_frequencies]. */
void rope_angles(const int32_t *positions, int32_t begin, int32_t end, const float *frequencies,
                 int32_t num_frequencies, float scale, float *out);

/* See kernels/rope_store_kv.py. `angles` from rope_angles; NULL where nothing turns.
 * Turns q and k in place; v stays as it was. */
void rope_store_kv(const sf_op *op, const sf_batch *batch, const sf_buffer *qkv,
                   const float *angles, const kv_layer *kv, row_range tokens);

/* A piece of attention: some rows of one sequence and KV head, and the keys they see.
 *
 * Row r of a sequence and KV head is query r / group_size and, of the query heads that read the KV
 * head, number r % group_size. Tile t of a sequence is tile t % tiles_per_block of block
 * block_tables[t / tiles_per_block]. */
typedef struct {
    int32_t sequence, kv_head;
    int32_t first_row, num_rows;
    int32_t first_tile, end_tile;
    int32_t split, num_splits; /* the tiles are share `split` of what the rows see */
    int32_t group;             /* which counter the splits share; -1: there is one split */
    int64_t first_record;      /* where the partial results of the group begin */
} attention_item;

/* What all layers of one attention shape share in a step. Zeroed before its first use. */
typedef struct {
    attention_item *items; /* those that take longest first */
    int64_t num_items, items_capacity;
    float *partials; /* a record per split and row */
    int64_t partials_capacity;
    atomic_int *pending; /* by group: splits that are not done, num_splits between layers */
    int64_t num_groups, pending_capacity;
    char *scratch; /* of each thread */
    int64_t scratch_bytes, scratch_capacity;
} attention_work;

/* List the items of a batch; grows the arrays as needed. `kv` is any layer of that shape.
 * Returns 0, or -1 without memory. */
int32_t plan_attention(attention_work *work, const sf_op *op, const sf_batch *batch,
                       const kv_layer *kv, int num_threads);

void free_attention_work(attention_work *work);

/* See kernels/paged_attention.py. A phase of its own; run by all threads.
 *
 * A row's result is the same, to the last bit, whatever else is in the batch, wherever its prompt
 * was cut into chunks, and however many threads there are: it depends on the row and its keys alone.
 */
void paged_attention(const sf_op *op, const sf_batch *batch, const sf_buffer *qkv,
                     const sf_buffer *out, const kv_layer *kv, attention_work *work,
                     walker *w);

#endif
