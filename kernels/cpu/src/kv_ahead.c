#include "kv_ahead.h"

#include "attention_plan.h"
#include "kv_cache.h"

enum {
    LINE_BYTES = 64,
    /* Shares of a cache of 32 MiB that several cores use: of what is fetched, and of the weights
     * that pass after the first of it. */
    MAX_AHEAD_BYTES = 12 << 20,
    MAX_WEIGHT_BYTES = 16 << 20,
};

/* Places in a block table: [begin, end). */
typedef struct {
    int32_t begin, end;
} block_range;

static const attention_item *item_of(const kv_ahead *ahead) {
    return &ahead->work->items[ahead->item];
}

static block_range blocks_of(const kv_ahead *ahead, const attention_item *item) {
    int32_t per_block = ahead->kv->tiles_per_block;
    return (block_range){item->first_tile / per_block, (item->end_tile + per_block - 1) / per_block};
}

/* Of the rows of a sequence, the last see what others do, but for what left a sliding window: keys
 * are fetched once. */
static bool has_last_rows(const kv_ahead *ahead, const attention_item *item) {
    sequence_span span = span_of(ahead->batch, item->sequence);
    int32_t num_tokens = span.kv_len - span.first_position;
    return item->first_row + item->num_rows == num_tokens * ahead->group_size;
}

/* Of one KV head of a block. */
static int64_t keys_bytes(const kv_layer *kv) {
    return keys_per_block_elements(kv) / kv->num_kv_heads * kv_element_bytes(kv);
}

static int64_t values_bytes(const kv_layer *kv) {
    return values_per_block_elements(kv) / kv->num_kv_heads * kv_element_bytes(kv);
}

/* At most MAX_AHEAD_BYTES of what attention reads. */
static int64_t bytes_to_fetch(const kv_ahead *ahead) {
    int64_t per_block = keys_bytes(ahead->kv) + values_bytes(ahead->kv), bytes = 0;
    for (int64_t i = 0; i < ahead->work->num_items && bytes < MAX_AHEAD_BYTES; i++) {
        const attention_item *item = &ahead->work->items[i];
        block_range blocks = blocks_of(ahead, item);
        if (has_last_rows(ahead, item)) bytes += (blocks.end - blocks.begin) * per_block;
    }
    return bytes < MAX_AHEAD_BYTES ? bytes : MAX_AHEAD_BYTES;
}

static const int32_t *block_table(const kv_ahead *ahead) {
    return ahead->batch->block_tables +
           (int64_t)item_of(ahead)->sequence * ahead->batch->max_num_blocks;
}

static void begin_run(kv_ahead *ahead, int32_t begin) {
    const int32_t *table = block_table(ahead);
    int32_t end = blocks_of(ahead, item_of(ahead)).end, next = begin + 1;
    int64_t last = extent_end(ahead->kv, table[begin]) - 1;
    while (next < end && table[next - 1] < last && table[next] == table[next - 1] + 1) next++;
    ahead->run_begin = begin, ahead->run_end = next;
    ahead->fetched = 0;
}

/* The thread's first item from this one on whose keys are to be fetched. */
static void begin_item(kv_ahead *ahead, int64_t item) {
    int64_t num_items = ahead->work->num_items;
    while (item < num_items && !has_last_rows(ahead, &ahead->work->items[item])) {
        item += ahead->num_threads;
    }
    ahead->item = item;
    if (item < num_items) {
        begin_run(ahead, blocks_of(ahead, item_of(ahead)).begin);
    } else {
        ahead->bytes_left = 0;
    }
}

static void move_on(kv_ahead *ahead) {
    if (ahead->run_end < blocks_of(ahead, item_of(ahead)).end) {
        begin_run(ahead, ahead->run_end);
    } else {
        begin_item(ahead, ahead->item + ahead->num_threads);
    }
}

static int64_t smaller(int64_t one, int64_t other) { return one < other ? one : other; }

kv_ahead look_ahead(const sf_op *op, const kv_layer *kv, const sf_batch *batch,
                    const attention_work *work, way until, int32_t thread, int32_t num_threads) {
    kv_ahead ahead = {.kv = kv, .batch = batch, .work = work, .num_threads = num_threads};
    ahead.group_size = op->num_heads / op->num_kv_heads;
    if (until.num_lines == 0) return ahead;
    int64_t num_bytes = bytes_to_fetch(&ahead), num_lines = until.num_lines;
    if (until.weight_bytes > MAX_WEIGHT_BYTES) {
        num_lines = (int64_t)((double)num_lines * MAX_WEIGHT_BYTES / (double)until.weight_bytes);
    }
    ahead.lines_to_wait = (until.num_lines - num_lines) / num_threads;
    ahead.bytes_left = num_bytes / num_threads;
    ahead.bytes_per_line = smaller(num_bytes / num_lines + 1, LINE_BYTES);
    begin_item(&ahead, thread);
    return ahead;
}

prefetch next_ahead(kv_ahead *ahead, int64_t num_steps, int32_t lines_per_step) {
    int64_t num_lines = num_steps * lines_per_step;
    ahead->lines_to_wait -= num_lines;
    if (ahead->lines_to_wait > 0 || ahead->bytes_left <= 0) return (prefetch){0};
    const kv_layer *kv = ahead->kv;
    int32_t num_blocks = ahead->run_end - ahead->run_begin;
    int32_t first = block_table(ahead)[ahead->run_begin];
    int64_t tile = tile_number(kv, first, item_of(ahead)->kv_head, 0);
    int64_t of_keys = num_blocks * keys_bytes(kv);
    bool is_key = ahead->fetched < of_keys;
    int64_t at = is_key ? ahead->fetched : ahead->fetched - of_keys;
    int64_t left = (is_key ? of_keys : num_blocks * values_bytes(kv)) - at;
    int64_t bytes = smaller(num_lines * ahead->bytes_per_line, left);
    ahead->fetched += bytes;
    ahead->bytes_left -= bytes;
    if (!is_key && bytes == left) move_on(ahead);
    const char *begin = is_key ? key_tile(kv, tile) : value_tile(kv, tile);
    return (prefetch){begin + at, (bytes + num_steps - 1) / num_steps};
}
