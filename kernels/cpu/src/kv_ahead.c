#include "kv_ahead.h"

#include "attention_plan.h"
#include "kv_cache.h"

enum {
    MAX_BYTES_PER_STEP = 64, /* a line */
    /* Shares of a cache of 32 MiB that several cores use: of what is fetched, and of the weights
     * that pass after the first of it. */
    MAX_AHEAD_BYTES = 12 << 20,
    MAX_WEIGHT_BYTES = 16 << 20,
};

/* Blocks of a sequence that its tokens see: [begin, end). */
typedef struct {
    int32_t begin, end;
} block_range;

static block_range seen_blocks(const kv_ahead *ahead, int32_t sequence) {
    sequence_span span = span_of(ahead->batch, sequence);
    int32_t block_size = ahead->kv->block_size;
    return (block_range){
        visible_keys(ahead->op, span.first_position).begin / block_size,
        (span.kv_len + block_size - 1) / block_size,
    };
}

/* Of one KV head of a block. */
static int64_t keys_bytes(const kv_layer *kv) {
    return keys_per_block_elements(kv) / kv->num_kv_heads * kv_element_bytes(kv);
}

static int64_t values_bytes(const kv_layer *kv) {
    return values_per_block_elements(kv) / kv->num_kv_heads * kv_element_bytes(kv);
}

static int64_t total_bytes(const kv_ahead *ahead) {
    int64_t num_blocks = 0;
    for (int32_t s = 0; s < ahead->batch->num_seqs; s++) {
        block_range seen = seen_blocks(ahead, s);
        num_blocks += seen.end - seen.begin;
    }
    const kv_layer *kv = ahead->kv;
    return num_blocks * kv->num_kv_heads * (keys_bytes(kv) + values_bytes(kv));
}

static const int32_t *block_table(const kv_ahead *ahead) {
    int64_t sequence = ahead->reader / ahead->kv->num_kv_heads;
    return ahead->batch->block_tables + sequence * ahead->batch->max_num_blocks;
}

static block_range blocks_of_reader(const kv_ahead *ahead) {
    return seen_blocks(ahead, (int32_t)(ahead->reader / ahead->kv->num_kv_heads));
}

static void begin_run(kv_ahead *ahead, int32_t begin) {
    const int32_t *table = block_table(ahead);
    int32_t end = blocks_of_reader(ahead).end, next = begin + 1;
    int64_t last = extent_end(ahead->kv, table[begin]) - 1;
    while (next < end && table[next - 1] < last && table[next] == table[next - 1] + 1) next++;
    ahead->run_begin = begin, ahead->run_end = next;
    ahead->fetched = 0;
}

static void begin_reader(kv_ahead *ahead, int64_t reader) {
    ahead->reader = reader;
    if (reader < (int64_t)ahead->batch->num_seqs * ahead->kv->num_kv_heads) {
        begin_run(ahead, blocks_of_reader(ahead).begin);
    } else {
        ahead->bytes_left = 0;
    }
}

static void move_on(kv_ahead *ahead) {
    if (ahead->run_end < blocks_of_reader(ahead).end) {
        begin_run(ahead, ahead->run_end);
    } else {
        begin_reader(ahead, ahead->reader + ahead->num_threads);
    }
}

static int64_t smaller(int64_t one, int64_t other) { return one < other ? one : other; }

kv_ahead look_ahead(const sf_op *op, const kv_layer *kv, const sf_batch *batch, way until,
                    int32_t thread, int32_t num_threads) {
    kv_ahead ahead = {.op = op, .kv = kv, .batch = batch, .num_threads = num_threads};
    if (until.num_steps == 0) return ahead;
    int64_t num_bytes = smaller(total_bytes(&ahead), MAX_AHEAD_BYTES);
    int64_t num_steps = until.num_steps;
    if (until.weight_bytes > MAX_WEIGHT_BYTES) {
        num_steps = (int64_t)((double)num_steps * MAX_WEIGHT_BYTES / (double)until.weight_bytes);
    }
    ahead.steps_to_wait = (until.num_steps - num_steps) / num_threads;
    ahead.bytes_left = num_bytes / num_threads;
    ahead.bytes_per_step = smaller(num_bytes / num_steps + 1, MAX_BYTES_PER_STEP);
    begin_reader(&ahead, thread);
    return ahead;
}

prefetch next_ahead(kv_ahead *ahead, int64_t num_steps) {
    ahead->steps_to_wait -= num_steps;
    if (ahead->steps_to_wait > 0 || ahead->bytes_left <= 0) return (prefetch){0};
    const kv_layer *kv = ahead->kv;
    int32_t num_blocks = ahead->run_end - ahead->run_begin;
    int32_t head = (int32_t)(ahead->reader % kv->num_kv_heads);
    int64_t tile = tile_number(kv, block_table(ahead)[ahead->run_begin], head, 0);
    int64_t of_keys = num_blocks * keys_bytes(kv);
    bool is_key = ahead->fetched < of_keys;
    int64_t at = is_key ? ahead->fetched : ahead->fetched - of_keys;
    int64_t left = (is_key ? of_keys : num_blocks * values_bytes(kv)) - at;
    int64_t bytes = smaller(num_steps * ahead->bytes_per_step, left);
    ahead->fetched += bytes;
    ahead->bytes_left -= bytes;
    if (!is_key && bytes == left) move_on(ahead);
    const char *begin = is_key ? key_tile(kv, tile) : value_tile(kv, tile);
    return (prefetch){begin + at, (bytes + num_steps - 1) / num_steps};
}
