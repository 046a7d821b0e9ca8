#include <stdlib.h>

#include "attention_plan.h"

/* An item is split when it is more than one part in this many of a thread's work. */
enum { ITEMS_PER_THREAD = 4 };

/* Time of an item: a tile costs its transport, and its arithmetic by rows. */
enum { TILE_COST = 6 };

static int64_t cost_of(const attention_item *item) {
    return (int64_t)(item->end_tile - item->first_tile) * (item->num_rows + TILE_COST);
}

static int32_t tile_of_key(const kv_layer *kv, int32_t key) {
    return key / kv->block_size * kv->tiles_per_block + key % kv->block_size / KEYS_PER_TILE;
}

/* An array of at least `needed` elements; its contents are lost. NULL without memory. */
static void *grow(void *array, int64_t *capacity, int64_t needed, size_t element_bytes) {
    if (needed <= *capacity) return array;
    free(array);
    *capacity = 0;
    size_t bytes = ((size_t)(2 * needed) * element_bytes + 63) / 64 * 64;
    void *grown = aligned_alloc(64, bytes);
    if (grown != NULL) *capacity = 2 * needed;
    return grown;
}

/* ── items with all their keys ─────────────────────────────────────────────────────────────── */

static int64_t count_items(const sf_op *op, const sf_batch *batch) {
    int64_t count = 0, group_size = op->num_heads / op->num_kv_heads;
    for (int32_t s = 0; s < batch->num_seqs; s++) {
        int64_t rows = (batch->cu_seqlens_q[s + 1] - batch->cu_seqlens_q[s]) * group_size;
        count += (rows + MAX_ITEM_ROWS - 1) / MAX_ITEM_ROWS * op->num_kv_heads;
    }
    return count;
}

/* Rows [first_row, first_row + num_rows) of a sequence, and the tiles that any of them sees. */
static attention_item make_item(const sf_op *op, const kv_layer *kv, sequence_span span,
                                int32_t first_row, int32_t num_rows) {
    int32_t group_size = op->num_heads / op->num_kv_heads;
    int32_t first = span.first_position + first_row / group_size;
    int32_t last = span.first_position + (first_row + num_rows - 1) / group_size;
    return (attention_item){
        .first_row = first_row,
        .num_rows = num_rows,
        .first_tile = tile_of_key(kv, visible_keys(op, first).begin),
        .end_tile = tile_of_key(kv, last) + 1,
        .num_splits = 1,
        .group = -1,
    };
}

static attention_item *list_sequence(attention_item *items, const sf_op *op, const kv_layer *kv,
                                     const sf_batch *batch, int32_t sequence) {
    sequence_span span = span_of(batch, sequence);
    int32_t group_size = op->num_heads / op->num_kv_heads;
    int32_t num_rows = (span.kv_len - span.first_position) * group_size;
    for (int32_t row = 0; row < num_rows; row += MAX_ITEM_ROWS) {
        int32_t rows = num_rows - row < MAX_ITEM_ROWS ? num_rows - row : MAX_ITEM_ROWS;
        attention_item item = make_item(op, kv, span, row, rows);
        item.sequence = sequence;
        for (int32_t head = 0; head < op->num_kv_heads; head++) {
            item.kv_head = head;
            *items++ = item;
        }
    }
    return items;
}

/* ── splits of long items ──────────────────────────────────────────────────────────────────── */

static int32_t splits_of(const attention_item *item) {
    int32_t first = item->first_tile / SPLIT_TILES;
    return (item->end_tile + SPLIT_TILES - 1) / SPLIT_TILES - first;
}

/* Whether an item keeps others waiting at the end of a step. Only time depends on it. */
static int is_too_long(const attention_item *item, int64_t total_cost, int num_threads) {
    return cost_of(item) * ITEMS_PER_THREAD * num_threads > total_cost && splits_of(item) > 1;
}

static int64_t total_cost_of(const attention_item *items, int64_t num_items) {
    int64_t total = 0;
    for (int64_t i = 0; i < num_items; i++) total += cost_of(&items[i]);
    return total;
}

/* What splitting adds: items, groups and records. */
typedef struct {
    int64_t items, groups, records;
} split_counts;

static split_counts count_splits(const attention_work *work, int64_t total_cost, int num_threads) {
    split_counts counts = {0};
    for (int64_t i = 0; i < work->num_items; i++) {
        const attention_item *item = &work->items[i];
        if (!is_too_long(item, total_cost, num_threads)) continue;
        counts.items += splits_of(item) - 1;
        counts.groups += 1;
        counts.records += (int64_t)splits_of(item) * item->num_rows;
    }
    return counts;
}

/* The first split takes the place of the item, the others go to `others`. Returns how many. */
static int32_t split_item(attention_item *item, attention_item *others) {
    attention_item whole = *item;
    whole.num_splits = splits_of(item);
    for (int32_t i = 0; i < whole.num_splits; i++) {
        attention_item *part = i == 0 ? item : &others[i - 1];
        int32_t boundary = (whole.first_tile / SPLIT_TILES + i) * SPLIT_TILES;
        *part = whole;
        part->split = i;
        if (i > 0) part->first_tile = boundary;
        if (boundary + SPLIT_TILES < whole.end_tile) part->end_tile = boundary + SPLIT_TILES;
    }
    return whole.num_splits - 1;
}

static void split_items(attention_work *work, int64_t total_cost, int num_threads) {
    int64_t num_items = work->num_items, next_record = 0;
    work->num_groups = 0;
    for (int64_t i = 0; i < num_items; i++) {
        attention_item *item = &work->items[i];
        if (!is_too_long(item, total_cost, num_threads)) continue;
        item->group = (int32_t)work->num_groups;
        item->first_record = next_record;
        next_record += (int64_t)splits_of(item) * item->num_rows;
        work->num_items += split_item(item, &work->items[work->num_items]);
        atomic_store(&work->pending[work->num_groups++], item->num_splits);
    }
}

/* ── order ─────────────────────────────────────────────────────────────────────────────────── */

/* Longest first; equals by sequence, head and rows, which is how their keys lie in memory. */
static int compare_items(const void *one, const void *other) {
    const attention_item *a = one, *b = other;
    int64_t cost_a = cost_of(a), cost_b = cost_of(b);
    if (cost_a != cost_b) return cost_a > cost_b ? -1 : 1;
    if (a->sequence != b->sequence) return a->sequence < b->sequence ? -1 : 1;
    if (a->kv_head != b->kv_head) return a->kv_head < b->kv_head ? -1 : 1;
    if (a->first_row != b->first_row) return a->first_row < b->first_row ? -1 : 1;
    return a->split < b->split ? -1 : a->split > b->split;
}

/* ── memory ────────────────────────────────────────────────────────────────────────────────── */

static int32_t reserve_splits(attention_work *work, const kv_layer *kv, split_counts counts) {
    int64_t floats_per_record = row_sums_bytes(kv->value_dim) / (int64_t)sizeof(float);
    work->partials = grow(work->partials, &work->partials_capacity,
                          counts.records * floats_per_record, sizeof *work->partials);
    work->pending =
        grow(work->pending, &work->pending_capacity, counts.groups, sizeof *work->pending);
    if (counts.records > work->partials_capacity) return -1;
    return counts.groups > work->pending_capacity ? -1 : 0;
}

static int32_t reserve_scratch(attention_work *work, const kv_layer *kv, int num_threads) {
    work->scratch_bytes = (attention_scratch_bytes(kv) + 63) / 64 * 64;
    work->scratch =
        grow(work->scratch, &work->scratch_capacity, work->scratch_bytes * num_threads, 1);
    return work->scratch == NULL ? -1 : 0;
}

/* Fewer than ITEMS_PER_THREAD * num_threads items are too long, each of at most the splits of the
 * longest sequence. Room is made before the items are known, since growing the array loses them. */
static int64_t max_items(const sf_op *op, const kv_layer *kv, const sf_batch *batch,
                         int num_threads) {
    int64_t longest = 0;
    for (int32_t s = 0; s < batch->num_seqs; s++) {
        int64_t tiles = tile_of_key(kv, batch->kv_lens[s] - 1) + 1;
        longest = tiles > longest ? tiles : longest;
    }
    int64_t splits = longest / SPLIT_TILES + 1;
    return count_items(op, batch) + splits * ITEMS_PER_THREAD * num_threads;
}

int32_t plan_attention(attention_work *work, const sf_op *op, const sf_batch *batch,
                       const kv_layer *kv, int num_threads) {
    int64_t capacity = max_items(op, kv, batch, num_threads);
    work->items = grow(work->items, &work->items_capacity, capacity, sizeof *work->items);
    if (work->items == NULL || reserve_scratch(work, kv, num_threads) != 0) return -1;
    attention_item *end = work->items;
    for (int32_t s = 0; s < batch->num_seqs; s++) end = list_sequence(end, op, kv, batch, s);
    work->num_items = end - work->items;
    int64_t total_cost = total_cost_of(work->items, work->num_items);
    split_counts counts = count_splits(work, total_cost, num_threads);
    if (reserve_splits(work, kv, counts) != 0) return -1;
    split_items(work, total_cost, num_threads);
    qsort(work->items, (size_t)work->num_items, sizeof *work->items, compare_items);
    return 0;
}

void free_attention_work(attention_work *work) {
    free(work->items);
    free(work->partials);
    free(work->pending);
    free(work->scratch);
    *work = (attention_work){0};
}
