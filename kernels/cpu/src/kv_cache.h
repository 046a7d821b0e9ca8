/* Where a tile of the KV cache lies; what is in it, attention.h says. */
#ifndef SPLITFUSE_KV_CACHE_H
#define SPLITFUSE_KV_CACHE_H

#include "attention.h"

static inline int64_t kv_element_bytes(const kv_layer *kv) {
    return kv->dtype == SF_BFLOAT16 ? 2 : 4;
}

/* The first block of the extent that a block is in. */
static inline int64_t extent_begin(int64_t block) { return block - block % BLOCKS_PER_EXTENT; }

/* The block behind the last of the extent that a block is in. */
static inline int64_t extent_end(const kv_layer *kv, int64_t block) {
    int64_t end = extent_begin(block) + BLOCKS_PER_EXTENT;
    return end < kv->num_blocks ? end : kv->num_blocks;
}

static inline int64_t tile_number(const kv_layer *kv, int32_t block, int32_t kv_head,
                                  int32_t tile_in_block) {
    int64_t begin = extent_begin(block), num_blocks = extent_end(kv, block) - begin;
    int64_t of_one_head = begin * kv->num_kv_heads + kv_head * num_blocks + (block - begin);
    return of_one_head * kv->tiles_per_block + tile_in_block;
}

static inline char *key_tile(const kv_layer *kv, int64_t tile) {
    return (char *)kv->keys + tile * KEYS_PER_TILE * kv->key_dim * kv_element_bytes(kv);
}

static inline char *value_tile(const kv_layer *kv, int64_t tile) {
    return (char *)kv->values + tile * KEYS_PER_TILE * kv->value_dim * kv_element_bytes(kv);
}

#endif
