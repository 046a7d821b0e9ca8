/* Attention of one item: 64 keys after another, online softmax.
 *
 * Rows are taken ROWS_AT_ONCE at a time: their scores with GROUP_TILES tiles of keys, their
 * probabilities, and the sums of values that these weigh. Both multiplications are the same: pairs
 * of elements of a row (of q, of p) are broadcast, and multiply vectors of pairs (of K, of V) into
 * sums that stay in registers. While a group of tiles is used, the next one is prefetched line by
 * line.
 *
 * Groups and splits begin at fixed tiles of the sequence, and keys that a row does not see change
 * nothing in it (they add zero, and multiply by one): so a row does not depend on its item.
 */
#include <stdbool.h>

#include "attention_plan.h"
#include "kv_cache.h"
#include "pointwise.h"

enum {
    GROUP_TILES = 4,
    GROUP_KEYS = GROUP_TILES * KEYS_PER_TILE,
    GROUP_VECTORS = GROUP_KEYS / LANES,
    ROWS_AT_ONCE = 4,
    /* So that the sums of all rows, the operands and the broadcasts fit into the registers. */
    VECTORS_AT_ONCE = LANES == 16 ? 4 : 2,
    PAIRS_PER_TILE = KEYS_PER_TILE / 2,
    /* A lane is a float32 or a pair of bfloat16. */
    VECTOR_BYTES = 4 * LANES,
};

/* Of keys that are not visible. Finite, so that differences of it are, too. */
static const float HIDDEN_SCORE = -1e30f;

/* How products are made. */
enum arithmetic {
    DOT_PAIRS,   /* bfloat16 pairs, by the instruction for them; q and p are bfloat16, too */
    WIDEN_PAIRS, /* bfloat16 pairs of K and V become float32; q and p are float32 */
    SINGLES,     /* all float32; a pair of V lies in two rows, and one of K */
#if defined(__AVX512BF16__)
    BF16_ARITHMETIC = DOT_PAIRS,
#else
    BF16_ARITHMETIC = WIDEN_PAIRS,
#endif
};

/* ── products ──────────────────────────────────────────────────────────────────────────────── */

/* Vectors of the two elements of pairs; for DOT_PAIRS `first` holds both. */
typedef struct {
    vec first, second;
} vec_pair;

/* `to_second`: bytes from the first to the second elements, where they lie apart. */
INLINE vec_pair load_vec_pair(int arithmetic, const char *p, int64_t to_second) {
    if (arithmetic == SINGLES) {
        return (vec_pair){load((const float *)p), load((const float *)(p + to_second))};
    }
    uvec pairs = load_pairs((const bf16 *)p);
    if (arithmetic == DOT_PAIRS) return (vec_pair){(vec)pairs, (vec)pairs};
    return (vec_pair){(vec)(pairs << 16), (vec)(pairs & 0xffff0000)};
}

/* Into the second cache: this group and the next, 16 KiB each, would fill a first one of 32. */
INLINE void prefetch_vec_pair(int arithmetic, const char *p, int64_t to_second) {
    __builtin_prefetch(p, 0, 2);
    if (arithmetic == SINGLES) __builtin_prefetch(p + to_second, 0, 2);
}

INLINE int64_t row_pair_bytes(int arithmetic) { return arithmetic == DOT_PAIRS ? 4 : 8; }

INLINE vec_pair splat_row_pair(int arithmetic, const char *p) {
    if (arithmetic == DOT_PAIRS) {
        vec both = (vec)splat_pair((const bf16 *)p);
        return (vec_pair){both, both};
    }
    const float *pair = (const float *)p;
    return (vec_pair){splat(pair[0]), splat(pair[1])};
}

INLINE vec add_products(int arithmetic, vec sum, vec_pair a, vec_pair b) {
    if (arithmetic == DOT_PAIRS) return dot_pairs(sum, (uvec)a.first, (uvec)b.first);
    return fma_vec(a.second, b.second, fma_vec(a.first, b.first, sum));
}

/* One pair of each row, times the vectors `b`. */
INLINE void add_row_pairs(int arithmetic, int rows, int vectors, const char *row_pairs,
                          int64_t row_bytes, const vec_pair *b,
                          vec sums[ROWS_AT_ONCE][VECTORS_AT_ONCE]) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        vec_pair a = splat_row_pair(arithmetic, row_pairs + r * row_bytes);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sums[r][v] = add_products(arithmetic, sums[r][v], a, b[v]);
        }
    }
}

/* ── a group of tiles ──────────────────────────────────────────────────────────────────────── */

typedef struct {
    const char *keys[GROUP_TILES], *values[GROUP_TILES];
    int32_t first_key[GROUP_TILES];
    int32_t num_keys[GROUP_TILES];  /* that the sequence has in the tile */
    int32_t num_pairs[GROUP_TILES]; /* of values, without the last pair */
    int32_t num_tiles;
    bool is_whole; /* all tiles are there and full */
    /* Where the sequence ends with the first of a pair of values: that pair, its second zero. The
     * slot may hold a stale NaN, and zero times that is not zero. NULL: all pairs are whole. */
    const char *last_pair;
} tile_group;

/* What does not change within an item. */
typedef struct {
    const sf_op *op;
    const kv_layer *kv;
    const int32_t *block_table;
    sequence_span span;
    int32_t kv_head, first_tile, end_tile;
} item_view;

static void add_tile(tile_group *group, const item_view *item, int32_t tile) {
    const kv_layer *kv = item->kv;
    int32_t block = tile / kv->tiles_per_block, in_block = tile % kv->tiles_per_block;
    int64_t number = tile_number(kv, item->block_table[block], item->kv_head, in_block);
    int32_t place = in_block * KEYS_PER_TILE, first_key = block * kv->block_size + place;
    int32_t slots = kv->block_size - place, keys = item->span.kv_len - first_key;
    int32_t i = group->num_tiles++;
    slots = slots < KEYS_PER_TILE ? slots : KEYS_PER_TILE;
    group->keys[i] = key_tile(kv, number);
    group->values[i] = value_tile(kv, number);
    group->first_key[i] = first_key;
    group->num_keys[i] = keys < slots ? keys : slots;
    /* Slots that no token can have are zero. */
    group->num_pairs[i] = keys < slots ? keys / 2 : (slots + 1) / 2;
    group->is_whole = group->is_whole && group->num_keys[i] == KEYS_PER_TILE;
}

/* The tiles of the group that `tile` is in, as far as they are the item's. */
static tile_group find_group(const item_view *item, int32_t tile) {
    tile_group group = {.is_whole = true};
    int32_t end = tile / GROUP_TILES * GROUP_TILES + GROUP_TILES;
    if (end > item->end_tile) end = item->end_tile;
    for (; tile < end; tile++) add_tile(&group, item, tile);
    group.is_whole = group.is_whole && group.num_tiles == GROUP_TILES;
    /* Prefetching follows all four. */
    for (int32_t i = group.num_tiles; i < GROUP_TILES && i > 0; i++) {
        group.keys[i] = group.keys[0];
        group.values[i] = group.values[0];
    }
    return group;
}

/* Copy the last pair of values of a sequence with an odd number of keys; `pair` [2 * value_dim]. */
static void complete_last_pair(tile_group *group, const kv_layer *kv, char *pair) {
    int32_t last = group->num_tiles - 1, pairs = group->num_pairs[last];
    if (group->num_keys[last] <= 2 * pairs) return;
    int64_t row_bytes = kv->value_dim * kv_element_bytes(kv);
    memcpy(pair, group->values[last] + pairs * 2 * row_bytes, 2 * (size_t)row_bytes);
    if (kv->dtype == SF_BFLOAT16) {
        for (int32_t i = 0; i < kv->value_dim; i++) ((bf16 *)pair)[2 * i + 1] = 0;
    } else {
        memset(pair + row_bytes, 0, (size_t)row_bytes);
    }
    group->last_pair = pair;
}

/* ── scores ────────────────────────────────────────────────────────────────────────────────── */

/* `vectors` vectors of keys from vector `at` of the group on. Meanwhile as many tiles of the next
 * group are prefetched, one after another: that takes one address, and registers are few. */
INLINE void score_vectors(int arithmetic, int rows, int vectors, int at, const char *q,
                          int32_t num_pairs, const tile_group *group, const tile_group *next,
                          float scores[][GROUP_KEYS]) {
    const int64_t pair_bytes = arithmetic == SINGLES ? 8 * KEYS_PER_TILE : 4 * KEYS_PER_TILE;
    const int tiles = vectors * LANES > KEYS_PER_TILE ? vectors * LANES / KEYS_PER_TILE : 1;
    const char *keys[VECTORS_AT_ONCE];
    vec sums[ROWS_AT_ONCE][VECTORS_AT_ONCE] = {};
    for (int v = 0; v < vectors; v++) {
        int lane = (at + v) * LANES;
        keys[v] = group->keys[lane / KEYS_PER_TILE] + lane % KEYS_PER_TILE * 4;
    }
    int32_t i = 0;
    for (int t = 0; t < tiles; t++) {
        const char *ahead = next->keys[at * LANES / KEYS_PER_TILE + t];
        for (int32_t end = num_pairs * (t + 1) / tiles; i < end; i++) {
            vec_pair b[VECTORS_AT_ONCE];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                b[v] = load_vec_pair(arithmetic, keys[v] + i * pair_bytes, pair_bytes / 2);
            }
#pragma GCC unroll 4
            for (int line = 0; line < tiles; line++) {
                prefetch_vec_pair(arithmetic, ahead + line * pair_bytes, pair_bytes / 2);
            }
            ahead += tiles * pair_bytes;
            add_row_pairs(arithmetic, rows, vectors,
                          q + i * ROWS_AT_ONCE * row_pair_bytes(arithmetic),
                          row_pair_bytes(arithmetic), b, sums);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) store(&scores[r][(at + v) * LANES], sums[r][v]);
    }
}

/* q · k of `rows` rows with the keys of `num_tiles` tiles. */
INLINE void score_rows(int arithmetic, int rows, const char *q, int32_t num_pairs,
                       const tile_group *group, const tile_group *next, int32_t num_tiles,
                       float scores[][GROUP_KEYS]) {
    int at = 0, end = num_tiles * KEYS_PER_TILE / LANES;
    for (; at + VECTORS_AT_ONCE <= end; at += VECTORS_AT_ONCE) {
        score_vectors(arithmetic, rows, VECTORS_AT_ONCE, at, q, num_pairs, group, next, scores);
    }
    if (VECTORS_AT_ONCE > 2 && at + 2 <= end) {
        score_vectors(arithmetic, rows, 2, at, q, num_pairs, group, next, scores);
        at += 2;
    }
    if (at < end) {
        score_vectors(arithmetic, rows, 1, at, q, num_pairs, group, next, scores);
    }
}

/* ── softmax ───────────────────────────────────────────────────────────────────────────────── */

/* All ones where lane `lane` of the group's tiles is a key of the row. */
INLINE ivec visible_lanes(const tile_group *group, key_range visible, int lane) {
    int tile = lane / KEYS_PER_TILE, in_tile = lane % KEYS_PER_TILE;
    int32_t end = visible.end - group->first_key[tile];
    if (end > group->num_keys[tile]) end = group->num_keys[tile];
    ivec place = lane_numbers() + in_tile;
    return (place >= visible.begin - group->first_key[tile]) & (place < end);
}

static const float LOG2_E = 1.44269504f;

/* How far above the row's maximum a later score may lie before that is raised, in units of log(2):
 * weights stay below 2^8, and nearly no group makes its rows scale what they have summed. */
static const float MAX_EXCESS = 8.0f;

/* From q · k to the score in units of log(2). */
INLINE vec scale_score(const sf_op *op, vec x) {
    if (op->soft_cap <= 0) return x * (op->scale * LOG2_E);
    return op->soft_cap * LOG2_E * tanh_vec(x * (op->scale / op->soft_cap));
}

/* What was summed gets smaller by as much. */
INLINE void raise_max(row_sums *row, float max, int32_t value_dim) {
    vec factor = exp2_vec(splat(row->max - max));
    store(row->lane_sums, load(row->lane_sums) * factor);
    for (int32_t i = 0; i < value_dim; i += LANES) {
        store(row->values + i, load(row->values + i) * factor);
    }
    row->max = max;
}

/* 2^x of x <= MAX_EXCESS, zero where a key is hidden; a relative error of 2e-7, or of 8e-5 where it
 * is rounded to bfloat16 anyway. NaN stays NaN. */
INLINE vec weight_of(int arithmetic, vec x) {
    if (arithmetic == DOT_PAIRS) return exp2_rough(x);
    vec weight = exp2_vec(x);
    return (vec)(~(x < -126.0f) & (ivec)weight);
}

INLINE void store_weight(int arithmetic, char *p, int vector, vec weight) {
    if (arithmetic == DOT_PAIRS) {
        store_bf16((bf16 *)p + vector * LANES, weight);
    } else {
        store((float *)p + vector * LANES, weight);
    }
}

/* A row and the group of keys that it is with. */
typedef struct {
    const sf_op *op;
    const tile_group *group;
    key_range visible;
    const float *products; /* q · k of all keys of the group */
} weighing;

/* Scores of a vector of keys less `max`. */
INLINE vec scores_above(const weighing *w, bool is_whole, int vector, float max) {
    vec products = load(w->products + vector * LANES);
    if (is_whole) return fma_vec(products, splat(w->op->scale * LOG2_E), splat(-max));
    ivec is_visible = visible_lanes(w->group, w->visible, vector * LANES);
    return blend(is_visible, scale_score(w->op, products) - max, splat(HIDDEN_SCORE));
}

INLINE vec largest_scores(const vec *scores, int vectors) {
    vec max = scores[0];
    for (int v = 1; v < vectors; v++) max = max_vec(scores[v], max);
    return max;
}

/* Weights of the keys in `vectors` vectors, as `p` and in the row's sum. Keys are first tried with
 * the maximum as it is, so that they do not wait for the largest of them to be found. */
INLINE void weigh_row(int arithmetic, const weighing *w, bool is_whole, int vectors, char *p,
                      row_sums *row, int32_t value_dim) {
    vec scores[GROUP_VECTORS];
    for (int v = 0; v < vectors; v++) scores[v] = scores_above(w, is_whole, v, row->max);
    if (any_above(largest_scores(scores, vectors), MAX_EXCESS)) {
        for (int v = 0; v < vectors; v++) scores[v] = scores_above(w, is_whole, v, 0.0f);
        raise_max(row, max_lanes(largest_scores(scores, vectors)), value_dim);
        for (int v = 0; v < vectors; v++) scores[v] = scores_above(w, is_whole, v, row->max);
    }
    vec sum = load(row->lane_sums);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        vec weight = weight_of(arithmetic, scores[v]);
        sum += weight;
        store_weight(arithmetic, p, v, weight);
    }
    store(row->lane_sums, sum);
}

INLINE bool sees_all(const tile_group *group, key_range visible) {
    return group->is_whole && visible.begin <= group->first_key[0] &&
           visible.end >= group->first_key[GROUP_TILES - 1] + KEYS_PER_TILE;
}

/* ── values ────────────────────────────────────────────────────────────────────────────────── */

INLINE void load_sums(int rows, int vectors, int32_t column, row_sums *const *records,
                      vec sums[ROWS_AT_ONCE][VECTORS_AT_ONCE]) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sums[r][v] = load(records[r]->values + column + v * LANES);
        }
    }
}

INLINE void store_sums(int rows, int vectors, int32_t column, row_sums *const *records,
                       vec sums[ROWS_AT_ONCE][VECTORS_AT_ONCE]) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            store(records[r]->values + column + v * LANES, sums[r][v]);
        }
    }
}

/* Add one pair of values of all rows, in `vectors` vectors of columns. */
INLINE void add_value_pair(int arithmetic, int rows, int vectors, const char *p,
                           const char *values, int64_t to_second,
                           vec sums[ROWS_AT_ONCE][VECTORS_AT_ONCE]) {
    vec_pair b[VECTORS_AT_ONCE];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        b[v] = load_vec_pair(arithmetic, values + v * VECTOR_BYTES, to_second);
    }
    add_row_pairs(arithmetic, rows, vectors, p, GROUP_KEYS / 2 * row_pair_bytes(arithmetic), b,
                  sums);
}

/* `vectors` vectors of columns from `column` on. */
INLINE void sum_columns(int arithmetic, int rows, int vectors, int32_t column, const char *p,
                        const kv_layer *kv, const tile_group *group, const tile_group *next,
                        int32_t num_tiles, row_sums *const *records) {
    const int64_t row_bytes = kv->value_dim * (arithmetic == SINGLES ? 4 : 2);
    const int64_t offset = column / LANES * VECTOR_BYTES, p_bytes = row_pair_bytes(arithmetic);
    vec sums[ROWS_AT_ONCE][VECTORS_AT_ONCE];
    load_sums(rows, vectors, column, records, sums);
    for (int32_t t = 0; t < num_tiles; t++) {
        const char *values = group->values[t] + offset, *ahead = next->values[t] + offset;
        const char *weights = p + t * PAIRS_PER_TILE * p_bytes;
        int32_t num_pairs = group->num_pairs[t];
        for (int32_t i = 0; i < num_pairs; i++) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                prefetch_vec_pair(arithmetic, ahead + i * 2 * row_bytes + v * VECTOR_BYTES,
                                  row_bytes);
            }
            add_value_pair(arithmetic, rows, vectors, weights + i * p_bytes,
                           values + i * 2 * row_bytes, row_bytes, sums);
        }
    }
    if (group->last_pair != NULL && num_tiles == group->num_tiles) {
        int32_t pair = (num_tiles - 1) * PAIRS_PER_TILE + group->num_pairs[num_tiles - 1];
        add_value_pair(arithmetic, rows, vectors, p + pair * p_bytes, group->last_pair + offset,
                       row_bytes, sums);
    }
    store_sums(rows, vectors, column, records, sums);
}

INLINE void sum_values(int arithmetic, int rows, const char *p, const kv_layer *kv,
                       const tile_group *group, const tile_group *next, int32_t num_tiles,
                       row_sums *const *records) {
    int32_t column = 0, end = kv->value_dim;
    for (; column + VECTORS_AT_ONCE * LANES <= end; column += VECTORS_AT_ONCE * LANES) {
        sum_columns(arithmetic, rows, VECTORS_AT_ONCE, column, p, kv, group, next, num_tiles,
                    records);
    }
    if (VECTORS_AT_ONCE > 2 && column + 2 * LANES <= end) {
        sum_columns(arithmetic, rows, 2, column, p, kv, group, next, num_tiles, records);
        column += 2 * LANES;
    }
    for (; column < end; column += LANES) {
        sum_columns(arithmetic, rows, 1, column, p, kv, group, next, num_tiles, records);
    }
}

/* ── rows ──────────────────────────────────────────────────────────────────────────────────── */

/* The rows of an item, and where a thread keeps them. Parts are rows that are taken at once. */
typedef struct {
    int32_t num_rows, num_parts;
    key_range visible[MAX_ITEM_ROWS];
    char *q; /* [num_parts][key_dim / 2][ROWS_AT_ONCE][2], bfloat16 for DOT_PAIRS, else float32 */
    int64_t q_part_bytes;
    char *last_pair;             /* [2 * value_dim] of the cache's dtype */
    row_sums *of_split, *of_all; /* [MAX_ITEM_ROWS] records */
} item_rows;

INLINE int32_t first_of_part(const item_rows *all, int32_t part) {
    return all->num_rows * part / all->num_parts;
}

INLINE row_sums *record(row_sums *first, int64_t row, int32_t value_dim) {
    return (row_sums *)((char *)first + row * row_sums_bytes(value_dim));
}

/* The tiles of which a row may see a key; later rows see more. */
INLINE int32_t tiles_before(const tile_group *group, int32_t end_key) {
    int32_t n = group->num_tiles;
    while (n > 0 && group->first_key[n - 1] >= end_key) n--;
    return n;
}

/* Products, weights and sums of the rows that are taken at once. */
typedef struct {
    _Alignas(64) float scores[ROWS_AT_ONCE][GROUP_KEYS];
    _Alignas(64) bf16 rounded[ROWS_AT_ONCE][GROUP_KEYS];
    row_sums *sums[ROWS_AT_ONCE];
} row_block;

/* Weights take the place of the products, unless they are bfloat16. */
INLINE char *weights_of(int arithmetic, row_block *block, int row) {
    return arithmetic == DOT_PAIRS ? (char *)block->rounded[row] : (char *)block->scores[row];
}

INLINE void weigh_rows(int arithmetic, int rows, const item_view *item, const key_range *visible,
                       const tile_group *group, int32_t num_tiles, row_block *block) {
    const int32_t value_dim = item->kv->value_dim;
    const int vectors = num_tiles * KEYS_PER_TILE / LANES;
    for (int r = 0; r < rows; r++) {
        weighing w = {item->op, group, visible[r], block->scores[r]};
        char *p = weights_of(arithmetic, block, r);
        if (item->op->soft_cap <= 0 && sees_all(group, visible[r])) {
            weigh_row(arithmetic, &w, true, GROUP_VECTORS, p, block->sums[r], value_dim);
        } else {
            weigh_row(arithmetic, &w, false, vectors, p, block->sums[r], value_dim);
        }
    }
}

/* One copy of these for any number of rows, so that a row's last bits do not depend on that. */
static __attribute__((noinline)) void weigh_bf16_rows(int rows, const item_view *item,
                                                      const key_range *visible,
                                                      const tile_group *group, int32_t num_tiles,
                                                      row_block *block) {
    weigh_rows(BF16_ARITHMETIC, rows, item, visible, group, num_tiles, block);
}

static __attribute__((noinline)) void weigh_float32_rows(int rows, const item_view *item,
                                                         const key_range *visible,
                                                         const tile_group *group,
                                                         int32_t num_tiles, row_block *block) {
    weigh_rows(SINGLES, rows, item, visible, group, num_tiles, block);
}

INLINE void attend_rows(int arithmetic, int rows, const item_view *item, const item_rows *all,
                        int32_t part, row_sums *records, const tile_group *group,
                        const tile_group *next) {
    const kv_layer *kv = item->kv;
    int32_t first = first_of_part(all, part);
    const key_range *visible = &all->visible[first];
    int32_t num_tiles = tiles_before(group, visible[rows - 1].end);
    row_block block;
    if (num_tiles == 0) return;
    for (int r = 0; r < rows; r++) block.sums[r] = record(records, first + r, kv->value_dim);
    score_rows(arithmetic, rows, all->q + part * all->q_part_bytes, kv->key_dim / 2, group, next,
               num_tiles, block.scores);
    if (arithmetic == SINGLES) {
        weigh_float32_rows(rows, item, visible, group, num_tiles, &block);
    } else {
        weigh_bf16_rows(rows, item, visible, group, num_tiles, &block);
    }
    sum_values(arithmetic, rows, weights_of(arithmetic, &block, 0), kv, group, next, num_tiles,
               block.sums);
}

/* The number of rows must be a constant for the sums to be registers. */
INLINE void attend_some_rows(int arithmetic, int rows, const item_view *item, const item_rows *all,
                             int32_t part, row_sums *records, const tile_group *group,
                             const tile_group *next) {
    switch (rows) {
    case 1: attend_rows(arithmetic, 1, item, all, part, records, group, next); return;
    case 2: attend_rows(arithmetic, 2, item, all, part, records, group, next); return;
    case 3: attend_rows(arithmetic, 3, item, all, part, records, group, next); return;
    case 4: attend_rows(arithmetic, 4, item, all, part, records, group, next); return;
    }
}

static void attend_group(const item_view *item, const item_rows *all, row_sums *records,
                         const tile_group *group, const tile_group *next) {
    for (int32_t part = 0; part < all->num_parts; part++) {
        int rows = first_of_part(all, part + 1) - first_of_part(all, part);
        if (item->kv->dtype == SF_BFLOAT16) {
            attend_some_rows(BF16_ARITHMETIC, rows, item, all, part, records, group, next);
        } else {
            attend_some_rows(SINGLES, rows, item, all, part, records, group, next);
        }
    }
}

/* ── splits ────────────────────────────────────────────────────────────────────────────────── */

static void clear_sums(row_sums *records, int32_t num_rows, int32_t value_dim) {
    for (int32_t r = 0; r < num_rows; r++) {
        row_sums *row = record(records, r, value_dim);
        store(row->lane_sums, splat(0.0f));
        row->max = HIDDEN_SCORE;
        for (int32_t i = 0; i < value_dim; i += LANES) store(row->values + i, splat(0.0f));
    }
}

/* Make `row` the sums over its keys and those of `part`, which come after. */
static void merge_row(row_sums *row, const row_sums *part, int32_t value_dim) {
    float max = part->max > row->max ? part->max : row->max;
    vec before = exp2_vec(splat(row->max - max)), after = exp2_vec(splat(part->max - max));
    store(row->lane_sums, load(row->lane_sums) * before + load(part->lane_sums) * after);
    for (int32_t i = 0; i < value_dim; i += LANES) {
        store(row->values + i, load(row->values + i) * before + load(part->values + i) * after);
    }
    row->max = max;
}

static void merge_rows(row_sums *rows, row_sums *parts, int32_t num_rows, int32_t value_dim) {
    for (int32_t r = 0; r < num_rows; r++) {
        merge_row(record(rows, r, value_dim), record(parts, r, value_dim), value_dim);
    }
}

/* ── items ─────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const sf_op *op;
    const sf_batch *batch;
    const sf_buffer *qkv, *out;
    const kv_layer *kv;
    const attention_item *upcoming; /* that this thread is likely to take next; NULL: none */
} attention_call;

static item_view view_item(const attention_call *call, const attention_item *item) {
    const sf_batch *batch = call->batch;
    return (item_view){
        .op = call->op,
        .kv = call->kv,
        .block_table = batch->block_tables + (int64_t)item->sequence * batch->max_num_blocks,
        .span = span_of(batch, item->sequence),
        .kv_head = item->kv_head,
        .first_tile = item->first_tile,
        .end_tile = item->end_tile,
    };
}

/* What to prefetch while an item ends: the first tiles of the upcoming one; `otherwise` if there is
 * none. */
static tile_group find_upcoming(const attention_call *call, const tile_group *otherwise) {
    if (call->upcoming == NULL) return *otherwise;
    item_view item = view_item(call, call->upcoming);
    return find_group(&item, item.first_tile);
}

/* Sum up the tiles [tile, end) of an item in `records`. */
static void attend_tiles(const attention_call *call, const item_view *item, const item_rows *all,
                         row_sums *records, int32_t tile, int32_t end) {
    tile_group group = find_group(item, tile);
    clear_sums(records, all->num_rows, item->kv->value_dim);
    while (tile < end) {
        tile = tile / GROUP_TILES * GROUP_TILES + GROUP_TILES;
        bool is_last = tile >= item->end_tile;
        tile_group next = is_last ? find_upcoming(call, &group) : find_group(item, tile);
        if (is_last) complete_last_pair(&group, item->kv, all->last_pair);
        attend_group(item, all, records, &group, &next);
        group = next;
    }
}

/* Sum up all tiles in `all->of_all`. */
static void attend_splits(const attention_call *call, const item_view *item, const item_rows *all) {
    int32_t tile = item->first_tile, value_dim = item->kv->value_dim;
    int32_t end = tile / SPLIT_TILES * SPLIT_TILES + SPLIT_TILES;
    attend_tiles(call, item, all, all->of_all, tile, end < item->end_tile ? end : item->end_tile);
    for (; end < item->end_tile; end += SPLIT_TILES) {
        int32_t split_end = end + SPLIT_TILES < item->end_tile ? end + SPLIT_TILES : item->end_tile;
        attend_tiles(call, item, all, all->of_split, end, split_end);
        merge_rows(all->of_all, all->of_split, all->num_rows, value_dim);
    }
}

/* ── queries and results ───────────────────────────────────────────────────────────────────── */

/* A row's place in the batch: row of the buffers, and its head. */
typedef struct {
    int32_t token, head, position;
} row_place;

INLINE row_place place_of(const sf_op *op, const item_view *item, int32_t row) {
    int32_t group_size = op->num_heads / op->num_kv_heads;
    return (row_place){
        .token = item->span.first_token + row / group_size,
        .head = item->kv_head * group_size + row % group_size,
        .position = item->span.first_position + row / group_size,
    };
}

/* Of the rows that are taken at once. */
static int64_t query_part_bytes(const kv_layer *kv) {
    bool is_rounded = kv->dtype == SF_BFLOAT16 && BF16_ARITHMETIC == DOT_PAIRS;
    return (int64_t)ROWS_AT_ONCE * kv->key_dim * (is_rounded ? 2 : 4);
}

/* One pair of a query as the broadcasts read it. */
INLINE void put_query_pair(int arithmetic, char *to, const char *from) {
    if (arithmetic != WIDEN_PAIRS) {
        memcpy(to, from, (size_t)row_pair_bytes(arithmetic));
        return;
    }
    const bf16 *narrow = (const bf16 *)from;
    float pair[2] = {bf16_to_float(narrow[0]), bf16_to_float(narrow[1])};
    memcpy(to, pair, sizeof pair);
}

/* Pairs of a row lie ROWS_AT_ONCE pairs apart in `q`. An odd last dimension gets a zero. */
INLINE void load_query(int arithmetic, const char *from, int32_t head_dim, char *q,
                       int32_t row_in_part) {
    const int64_t from_bytes = arithmetic == SINGLES ? 4 : 2;
    const int64_t pair_bytes = row_pair_bytes(arithmetic);
    char *to = q + row_in_part * pair_bytes;
    for (int32_t pair = 0; pair < head_dim / 2; pair++) {
        put_query_pair(arithmetic, to + pair * ROWS_AT_ONCE * pair_bytes,
                       from + pair * 2 * from_bytes);
    }
    if (head_dim % 2 != 0) {
        char last[8] = {0};
        memcpy(last, from + (head_dim - 1) * from_bytes, (size_t)from_bytes);
        put_query_pair(arithmetic, to + head_dim / 2 * ROWS_AT_ONCE * pair_bytes, last);
    }
}

static void load_query_at(const attention_call *call, row_place place, char *q,
                          int32_t row_in_part) {
    int32_t head_dim = call->kv->head_dim;
    const char *row = row_of(call->qkv, place.token);
    const char *from = row + place.head * head_dim * kv_element_bytes(call->kv);
    if (call->kv->dtype == SF_BFLOAT16) {
        load_query(BF16_ARITHMETIC, from, head_dim, q, row_in_part);
    } else {
        load_query(SINGLES, from, head_dim, q, row_in_part);
    }
}

static void load_rows(const attention_call *call, const item_view *item, int32_t first_row,
                      item_rows *all) {
    for (int32_t part = 0; part < all->num_parts; part++) {
        int32_t first = first_of_part(all, part), end = first_of_part(all, part + 1);
        for (int32_t r = first; r < end; r++) {
            row_place place = place_of(call->op, item, first_row + r);
            all->visible[r] = visible_keys(call->op, place.position);
            load_query_at(call, place, all->q + part * all->q_part_bytes, r - first);
        }
    }
}

static void write_rows(const attention_call *call, const item_view *item, int32_t first_row,
                       const item_rows *all) {
    int32_t head_dim = call->kv->head_dim;
    for (int32_t r = 0; r < all->num_rows; r++) {
        row_place place = place_of(call->op, item, first_row + r);
        const row_sums *sums = record(all->of_all, r, call->kv->value_dim);
        float factor = 1.0f / sum_lanes(load(sums->lane_sums));
        char *to = row_of(call->out, place.token);
        for (int32_t i = 0; i < head_dim; i += LANES) {
            store_element(to, call->out->dtype, place.head * head_dim + i,
                          load(sums->values + i) * factor, head_dim - i);
        }
    }
}

enum { MAX_PARTS = (MAX_ITEM_ROWS + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE };

/* Lay out the scratch of a thread; attention_scratch_bytes is how long it is. */
static item_rows make_rows(const kv_layer *kv, int32_t num_rows, char *scratch) {
    int64_t records = MAX_ITEM_ROWS * row_sums_bytes(kv->value_dim);
    return (item_rows){
        .num_rows = num_rows,
        .num_parts = (num_rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE,
        .q = scratch + 2 * records,
        .q_part_bytes = query_part_bytes(kv),
        .last_pair = scratch + 2 * records + MAX_PARTS * query_part_bytes(kv),
        .of_split = (row_sums *)scratch,
        .of_all = (row_sums *)(scratch + records),
    };
}

int64_t attention_scratch_bytes(const kv_layer *kv) {
    int64_t last_pair = 2 * kv->value_dim * kv_element_bytes(kv);
    return MAX_ITEM_ROWS * 2 * row_sums_bytes(kv->value_dim) + MAX_PARTS * query_part_bytes(kv) +
           last_pair;
}

/* ── the op ────────────────────────────────────────────────────────────────────────────────── */

/* True in the thread that is the last of the item's group; what the others wrote, it sees. */
static bool is_last_of_group(attention_work *work, const attention_item *item) {
    atomic_int *pending = &work->pending[item->group];
    if (atomic_fetch_sub(pending, 1) > 1) return false;
    atomic_store(pending, item->num_splits); /* for the next layer */
    return true;
}

static row_sums *partial_records(attention_work *work, const attention_item *item, int32_t split,
                                 int32_t value_dim) {
    int64_t number = item->first_record + (int64_t)split * item->num_rows;
    return record((row_sums *)work->partials, number, value_dim);
}

/* In the order of the splits, as attend_splits does. */
static void merge_splits(attention_work *work, const attention_item *item, const item_rows *all,
                         int32_t value_dim) {
    size_t bytes = (size_t)(item->num_rows * row_sums_bytes(value_dim));
    memcpy(all->of_all, partial_records(work, item, 0, value_dim), bytes);
    for (int32_t split = 1; split < item->num_splits; split++) {
        merge_rows(all->of_all, partial_records(work, item, split, value_dim), item->num_rows,
                   value_dim);
    }
}

/* Leaves what its rows come to, in the tiles of the item, in `all->of_all`. */
static void compute_item(const attention_call *call, const attention_item *item,
                         const item_view *view, item_rows *all) {
    load_rows(call, view, item->first_row, all);
    if (item->group < 0) {
        attend_splits(call, view, all);
    } else {
        attend_tiles(call, view, all, all->of_all, item->first_tile, item->end_tile);
    }
}

/* Stores the results of `compute_item`; of a split they are written out with the last one. */
static void store_item(const attention_call *call, attention_work *work,
                       const attention_item *item, const item_view *view, const item_rows *all) {
    if (item->group >= 0) {
        int32_t value_dim = call->kv->value_dim;
        size_t bytes = (size_t)(item->num_rows * row_sums_bytes(value_dim));
        memcpy(partial_records(work, item, item->split, value_dim), all->of_all, bytes);
        if (!is_last_of_group(work, item)) return;
        merge_splits(work, item, all, value_dim);
    }
    write_rows(call, view, item->first_row, all);
}

void paged_attention(const sf_op *op, const sf_batch *batch, const sf_buffer *qkv,
                     const sf_buffer *out, const kv_layer *kv, attention_work *work,
                     walker *w) {
    attention_call call = {.op = op, .batch = batch, .qkv = qkv, .out = out, .kv = kv};
    char *scratch = work->scratch + w->thread * work->scratch_bytes;
    item i;
    begin_dealt_phase(w, work->num_items);
    while (take_item(w, &i)) {
        int64_t number = dealt_number(w, i), upcoming = number + num_walkers(w);
        const attention_item *one = &work->items[number];
        item_view view = view_item(&call, one);
        item_rows all = make_rows(kv, one->num_rows, scratch);
        call.upcoming = upcoming < work->num_items ? &work->items[upcoming] : NULL;
        compute_item(&call, one, &view, &all);
        if (!may_store(w, i)) continue;
        store_item(&call, work, one, &view, &all);
        item_done(w, i);
    }
}
