#include "matrix.h"

#include <stdlib.h>

#include "pointwise.h"

enum {
    PREFETCH_AHEAD_BYTES = 4096,
    /* Of rows that share a pass over the weights: fewer wait for the weights themselves. */
    MIN_FETCHING_GROUPS = 3,
};

/* Sums of up to MAX_GROUP_ROWS rows and one block. */
typedef struct {
    float sums[MAX_GROUP_ROWS][BLOCK_COLUMNS];
} tile;

matrix describe_matrix(int32_t dtype, int32_t in_width, int32_t out_width, int32_t is_gated,
                       int32_t num_threads) {
    int32_t outputs_per_block = is_gated ? LANES : BLOCK_COLUMNS;
    int32_t outputs = is_gated ? out_width / 2 : out_width;
    int64_t pairs = (in_width + 1) / 2, steps = (pairs + 1) / 2;
    bool is_coded = HAS_WEIGHT_CODE && dtype == SF_BFLOAT16;
    int64_t plain_bytes =
        BLOCK_COLUMNS * 4 * (dtype == SF_BFLOAT16 ? pairs : (int64_t)in_width);
    return (matrix){
        .dtype = dtype,
        .in_width = in_width,
        .out_width = out_width,
        .is_gated = is_gated,
        .num_blocks = (outputs + outputs_per_block - 1) / outputs_per_block,
        .block_bytes = is_coded ? steps * CODED_STEP_BYTES : plain_bytes,
        .is_coded = is_coded,
        .num_threads = num_threads,
    };
}

int32_t share_begin(const matrix *m, int32_t thread) {
    return (int32_t)((int64_t)m->num_blocks * thread / m->num_threads);
}

/* ── packing ───────────────────────────────────────────────────────────────────────────────── */

/* The row of weights that makes a column of a block; -1: none, the column is padding. */
static int32_t source_row(const matrix *m, int32_t block, int32_t column) {
    if (!m->is_gated) {
        int32_t row = block * BLOCK_COLUMNS + column;
        return row < m->out_width ? row : -1;
    }
    int32_t half = m->out_width / 2, row = block * LANES + column % LANES;
    if (row >= half) return -1;
    return column < LANES ? row : half + row;
}

static void pack_column_bf16(const matrix *m, const bf16 *row, bf16 *column) {
    for (int32_t k = 0; k < m->in_width; k++) {
        column[(k / 2) * 2 * BLOCK_COLUMNS + k % 2] = row[k];
    }
}

static void pack_column_float32(const matrix *m, const float *row, float *column) {
    for (int32_t k = 0; k < m->in_width; k++) column[(int64_t)k * BLOCK_COLUMNS] = row[k];
}

/* `packed` is zero. */
static void pack_block(const matrix *m, const void *weights, int32_t block, char *packed) {
    for (int32_t column = 0; column < BLOCK_COLUMNS; column++) {
        int64_t row = source_row(m, block, column);
        if (row < 0) continue;
        if (m->dtype == SF_BFLOAT16) {
            const bf16 *source = (const bf16 *)weights + row * m->in_width;
            pack_column_bf16(m, source, (bf16 *)packed + 2 * column);
        } else {
            const float *source = (const float *)weights + row * m->in_width;
            pack_column_float32(m, source, (float *)packed + column);
        }
    }
}

static int32_t num_coded_steps(const matrix *m) {
    return (int32_t)(m->block_bytes / CODED_STEP_BYTES);
}

static int32_t encode_share(const matrix *m, const void *weights, int32_t thread) {
    int32_t begin = share_begin(m, thread), end = share_begin(m, thread + 1);
    rare_weights *rare = &m->rare[thread];
    size_t bytes = (size_t)num_coded_steps(m) * CODED_WEIGHTS * sizeof(bf16);
    bf16 *packed = malloc(bytes);
    int32_t failed = packed == NULL ? -1 : clear_rare_weights(rare, end - begin);
    for (int32_t block = begin; block < end && failed == 0; block++) {
        char *to = m->shares[thread] + (block - begin) * m->block_bytes;
        memset(packed, 0, bytes);
        pack_block(m, weights, block, (char *)packed);
        failed = encode_block(&m->code, packed, num_coded_steps(m), to, rare, block - begin);
    }
    free(packed);
    return failed;
}

void prepare_packing(matrix *m, const void *weights) {
    if (m->is_coded) m->code = choose_weight_code(weights, m->out_width, m->in_width);
}

int32_t pack_share(const matrix *m, const void *weights, int32_t thread) {
    if (m->is_coded) return encode_share(m, weights, thread);
    int32_t begin = share_begin(m, thread), end = share_begin(m, thread + 1);
    memset(m->shares[thread], 0, (size_t)((end - begin) * m->block_bytes));
    for (int32_t block = begin; block < end; block++) {
        pack_block(m, weights, block, m->shares[thread] + (block - begin) * m->block_bytes);
    }
    return 0;
}

/* ── multiplying ───────────────────────────────────────────────────────────────────────────── */

/* What is fetched while a group is multiplied. */
typedef struct {
    prefetch first, second;
} prefetches;

/* Two lines per step: the second is of the weights, too, or of what attention reads. */
INLINE void fetch(prefetches next, int64_t step) {
    __builtin_prefetch(next.first.begin + step * next.first.bytes_per_step, 0, 3);
    __builtin_prefetch(next.second.begin + step * next.second.bytes_per_step, 0, 3);
}

/* Three, for a step of codes is as long: the third lies behind the second. */
INLINE void fetch_coded(prefetches next, int64_t step) {
    fetch(next, step);
    __builtin_prefetch(next.second.begin + step * next.second.bytes_per_step + 64, 0, 3);
}

INLINE void store_sums(tile *out, int rows, vec sums[][2]) {
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        store(out->sums[i], sums[i][0]);
        store(out->sums[i] + LANES, sums[i][1]);
    }
}

/* The rows of a group, by few enough registers for all: every fourth has an address, and the three
 * behind it are one, two and three strides away. */
typedef struct {
    const bf16 *fourths[(MAX_GROUP_ROWS + 3) / 4];
    int64_t stride, three_strides;
} group_rows;

INLINE group_rows rows_from(const bf16 *first, int64_t stride, int rows) {
    group_rows a = {.stride = stride, .three_strides = 3 * stride};
    for (int i = 0; i < rows; i += 4) {
        a.fourths[i / 4] = first + i * stride;
        /* A compiler that knew this would make an offset for each row instead, and run out. */
        __asm__("" : "+r"(a.fourths[i / 4]));
    }
    return a;
}

INLINE const bf16 *row_in_group(const group_rows *a, int i) {
    return a->fourths[i / 4] + (i % 4 == 3 ? a->three_strides : i % 4 * a->stride);
}

/* A pair of inputs of each row. */
INLINE void multiply_pair(int rows, const group_rows *a, int64_t input, uvec first, uvec second,
                          vec sums[][2]) {
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        uvec x = splat_pair(row_in_group(a, i) + input);
        sums[i][0] = dot_pairs(sums[i][0], x, first);
        sums[i][1] = dot_pairs(sums[i][1], x, second);
    }
}

INLINE void multiply_group_bf16(int rows, const bf16 *first_row, int64_t stride,
                                const bf16 *block, int32_t num_pairs, prefetches next, tile *out) {
    vec sums[MAX_GROUP_ROWS][2] = {};
    const group_rows a = rows_from(first_row, stride, rows);
    for (int32_t pair = 0; pair < num_pairs; pair++) {
        const bf16 *weights = block + (int64_t)pair * 2 * BLOCK_COLUMNS;
        fetch(next, pair);
        multiply_pair(rows, &a, 2 * pair, load_pairs(weights), load_pairs(weights + 2 * LANES),
                      sums);
    }
    store_sums(out, rows, sums);
}

INLINE void multiply_group_float32(int rows, const float *a, int64_t stride, const float *block,
                                   int32_t in_width, prefetches next, tile *out) {
    vec sums[MAX_GROUP_ROWS][2] = {};
    for (int32_t k = 0; k < in_width; k++) {
        const float *weights = block + (int64_t)k * BLOCK_COLUMNS;
        vec first = load(weights), second = load(weights + LANES);
        fetch(next, k);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            vec x = splat(a[i * stride + k]);
            sums[i][0] = fma_vec(x, first, sums[i][0]);
            sums[i][1] = fma_vec(x, second, sums[i][1]);
        }
    }
    store_sums(out, rows, sums);
}

/* The weights of a block. */
typedef struct {
    const char *packed;
    const rare_weight *rare, *end_of_rare; /* beside codes */
} block_weights;

#if LANES == 16

/* The code of a rare weight says zero; here it comes as a pair of inputs by itself. So many rows or
 * others, the sums are the same. */
INLINE void multiply_rare(int rows, const group_rows *a, const block_weights *block,
                          vec sums[][2]) {
    for (const rare_weight *rare = block->rare; rare < block->end_of_rare; rare++) {
        rare_pair pair = find_rare_pair(rare);
        multiply_pair(rows, a, pair.input, pair.vectors[0], pair.vectors[1], sums);
    }
}

/* Decodes while it multiplies: that takes other units of the core. */
INLINE void multiply_group_coded(const matrix *m, int rows, const bf16 *first_row, int64_t stride,
                                 const block_weights *block, prefetches next, tile *out) {
    vec sums[MAX_GROUP_ROWS][2] = {};
    const decoder d = make_decoder(&m->code);
    const group_rows a = rows_from(first_row, stride, rows);
    const int32_t num_steps = num_coded_steps(m);
    for (int32_t step = 0; step < num_steps; step++) {
        decoded_step s = decode_step(d, block->packed + (int64_t)step * CODED_STEP_BYTES);
        fetch_coded(next, step);
        multiply_pair(rows, &a, 4 * step, s.vectors[0], s.vectors[1], sums);
        multiply_pair(rows, &a, 4 * step + 2, s.vectors[2], s.vectors[3], sums);
    }
    multiply_rare(rows, &a, block, sums);
    store_sums(out, rows, sums);
}

#endif

INLINE void multiply_group(const matrix *m, int rows, const sf_buffer *in, int64_t row,
                           const block_weights *block, prefetches next, tile *out) {
    const char *a = row_of(in, row);
#if LANES == 16
    if (m->is_coded) {
        multiply_group_coded(m, rows, (const bf16 *)a, in->stride, block, next, out);
        return;
    }
#endif
    if (m->dtype == SF_BFLOAT16) {
        multiply_group_bf16(rows, (const bf16 *)a, in->stride, (const bf16 *)block->packed,
                            (m->in_width + 1) / 2, next, out);
    } else {
        multiply_group_float32(rows, (const float *)a, in->stride, (const float *)block->packed,
                               m->in_width, next, out);
    }
}

/* The number of rows must be a constant for the sums to be registers. */
static void multiply_rows(const matrix *m, int rows, const sf_buffer *in, int64_t row,
                          const block_weights *block, prefetches next, tile *out) {
    switch (rows) {
    case 1: multiply_group(m, 1, in, row, block, next, out); return;
    case 2: multiply_group(m, 2, in, row, block, next, out); return;
    case 3: multiply_group(m, 3, in, row, block, next, out); return;
    case 4: multiply_group(m, 4, in, row, block, next, out); return;
    case 5: multiply_group(m, 5, in, row, block, next, out); return;
    case 6: multiply_group(m, 6, in, row, block, next, out); return;
#if LANES == 16
    case 7: multiply_group(m, 7, in, row, block, next, out); return;
    case 8: multiply_group(m, 8, in, row, block, next, out); return;
    case 9: multiply_group(m, 9, in, row, block, next, out); return;
    case 10: multiply_group(m, 10, in, row, block, next, out); return;
    case 11: multiply_group(m, 11, in, row, block, next, out); return;
    case 12: multiply_group(m, 12, in, row, block, next, out); return;
#endif
    }
}

/* ── what follows ──────────────────────────────────────────────────────────────────────────── */

/* All that finishing a group needs, by value: a store through a pointer to characters could change
 * anything that lies in memory, and the compiler would read it again for each vector. */
typedef struct {
    epilogue end;
    char *out, *residual; /* the group's first rows */
    int64_t out_row_bytes, residual_row_bytes;
    int32_t out_dtype, residual_dtype, rows;
} finishing;

static finishing prepare_finishing(const epilogue *end, const sf_buffer *out, int64_t row,
                                   int rows) {
    const sf_buffer *residual = end->residual;
    finishing f = {.end = *end, .rows = rows};
    f.out = row_of(out, row);
    f.out_dtype = out->dtype;
    f.out_row_bytes = out->stride * element_bytes(out->dtype);
    if (residual != NULL) {
        f.residual = row_of(residual, row);
        f.residual_dtype = residual->dtype;
        f.residual_row_bytes = residual->stride * element_bytes(residual->dtype);
    }
    return f;
}

INLINE vec load_bias(const float *bias, int32_t column, int32_t count) {
    if (bias == NULL) return splat(0.0f);
    if (count >= LANES) return load(bias + column);
    float lanes[LANES] = {0};
    memcpy(lanes, bias + column, (size_t)count * sizeof *lanes);
    return load(lanes);
}

INLINE vec finish(const epilogue *end, vec x) {
    if (end->soft_cap > 0) x = end->soft_cap * tanh_vec(x / end->soft_cap);
    return activate_vec(end->activation, x);
}

/* Store `count` outputs of row i of the group from `column` on. */
INLINE void put(const finishing *f, int i, int32_t column, int32_t count, vec x) {
    if (f->residual != NULL) {
        const char *residual = f->residual + i * f->residual_row_bytes;
        x += load_element(residual, f->residual_dtype, column);
    }
    store_element(f->out + i * f->out_row_bytes, f->out_dtype, column, x, count);
}

static void put_plain(finishing f, const matrix *m, int32_t block, const tile *t) {
    for (int half = 0; half < 2; half++) {
        int32_t column = block * BLOCK_COLUMNS + half * LANES, count = m->out_width - column;
        if (count <= 0) return;
        vec bias = load_bias(f.end.bias, column, count);
        for (int i = 0; i < f.rows; i++) {
            vec x = load(t->sums[i] + half * LANES) + bias;
            put(&f, i, column, count, finish(&f.end, x));
        }
    }
}

static void put_gated(finishing f, const matrix *m, int32_t block, const tile *t) {
    int32_t width = m->out_width / 2, column = block * LANES, count = width - column;
    vec gate_bias = load_bias(f.end.bias, column, count);
    vec up_bias = load_bias(f.end.bias, width + column, count);
    for (int i = 0; i < f.rows; i++) {
        vec gate = load(t->sums[i]) + gate_bias, up = load(t->sums[i] + LANES) + up_bias;
        put(&f, i, column, count, finish(&f.end, gate) * up);
    }
}

static int64_t num_steps(const matrix *m) {
    if (m->is_coded) return num_coded_steps(m);
    return m->dtype == SF_BFLOAT16 ? (m->in_width + 1) / 2 : m->in_width;
}

/* Of a step, beside the next weights. */
static int32_t lines_per_step(const matrix *m) { return m->is_coded ? 2 : 1; }

/* The first group brings a block from memory, the others find it in cache. So that the next block
 * is there in time, each group fetches its part of it: of three groups a line per step or less, so
 * what else a step fetches is free. */
static prefetches plan_prefetches(const matrix *m, const char *block, int32_t group,
                                  int32_t num_groups, kv_ahead *ahead) {
    int64_t per_step = m->is_coded ? CODED_STEP_BYTES : 4 * BLOCK_COLUMNS;
    if (num_groups == 1) {
        const char *next = block + PREFETCH_AHEAD_BYTES;
        return (prefetches){{next, per_step}, {next + 64, per_step}};
    }
    int64_t part = m->block_bytes / num_groups;
    prefetch next = {block + m->block_bytes + group * part, (per_step - 1) / num_groups + 1};
    prefetch other = {0};
    if (num_groups >= MIN_FETCHING_GROUPS) {
        other = next_ahead(ahead, num_steps(m), lines_per_step(m));
    }
    return (prefetches){next, other.begin == NULL ? next : other};
}

/* ── items ─────────────────────────────────────────────────────────────────────────────────── */

/* How rows are cut: into panels of about the same size, their groups into parts. An item is a block
 * and a part; those of one block follow each other, so that it stays in cache. */
typedef struct {
    int32_t num_panels, parts_per_panel;
} row_cuts;

static int32_t groups_of_panel(int32_t num_rows) {
    return (num_rows + MAX_GROUP_ROWS - 1) / MAX_GROUP_ROWS;
}

static row_cuts cut_rows(int32_t num_rows) {
    if (num_rows == 0) return (row_cuts){0, 0};
    int32_t panels = (num_rows + PANEL_ROWS - 1) / PANEL_ROWS;
    int32_t rows = (num_rows + panels - 1) / panels;
    int32_t groups = groups_of_panel(rows);
    return (row_cuts){panels, (groups + MAX_ITEM_GROUPS - 1) / MAX_ITEM_GROUPS};
}

static int32_t blocks_of_share(const matrix *m, int32_t thread) {
    return share_begin(m, thread + 1) - share_begin(m, thread);
}

int64_t max_items_of_matrix(const matrix *m, int32_t num_rows) {
    row_cuts cuts = cut_rows(num_rows);
    int64_t blocks = (m->num_blocks + m->num_threads - 1) / m->num_threads;
    return blocks * cuts.num_panels * cuts.parts_per_panel;
}

int64_t lines_ahead(const matrix *m, int32_t num_rows) {
    int32_t panels = cut_rows(num_rows).num_panels;
    int32_t groups = panels == 0 ? 0 : panels * groups_of_panel(num_rows / panels);
    if (groups < MIN_FETCHING_GROUPS) return 0;
    return num_steps(m) * lines_per_step(m) * m->num_blocks * groups;
}

static void begin_multiplying(const matrix *m, row_cuts cuts, walker *w) {
    begin_phase(w);
    for (int32_t thread = 0; thread < m->num_threads; thread++) {
        w->counts[thread] = blocks_of_share(m, thread) * cuts.num_panels * cuts.parts_per_panel;
    }
}

/* What an item multiplies. */
typedef struct {
    const char *packed;
    int32_t block, block_of_share, share;
    int32_t first_row, num_rows, num_groups; /* of the panel */
    int32_t begin_group, end_group;          /* of the item */
} product;

static product find_product(const matrix *m, row_cuts cuts, int32_t num_rows, item i) {
    int32_t part = i.index % cuts.parts_per_panel, blocks = blocks_of_share(m, i.queue);
    int32_t block = i.index / cuts.parts_per_panel % blocks;
    int32_t panel = i.index / cuts.parts_per_panel / blocks;
    int32_t begin = (int32_t)((int64_t)num_rows * panel / cuts.num_panels);
    int32_t end = (int32_t)((int64_t)num_rows * (panel + 1) / cuts.num_panels);
    int32_t num_groups = groups_of_panel(end - begin);
    return (product){
        .packed = m->shares[i.queue] + block * m->block_bytes,
        .block = share_begin(m, i.queue) + block,
        .block_of_share = block,
        .share = i.queue,
        .first_row = begin,
        .num_rows = end - begin,
        .num_groups = num_groups,
        .begin_group = num_groups * part / cuts.parts_per_panel,
        .end_group = num_groups * (part + 1) / cuts.parts_per_panel,
    };
}

INLINE int32_t first_row_of(const product *p, int32_t group) {
    return p->first_row + (int32_t)((int64_t)p->num_rows * group / p->num_groups);
}

static block_weights weights_of(const matrix *m, const product *p) {
    block_weights block = {.packed = p->packed};
    if (m->is_coded) {
        const rare_weights *rare = &m->rare[p->share];
        int64_t first = p->block_of_share == 0 ? 0 : rare->ends[p->block_of_share - 1];
        block.rare = rare->weights + first;
        block.end_of_rare = rare->weights + rare->ends[p->block_of_share];
    }
    return block;
}

static void multiply_one_group(const matrix *m, const sf_buffer *in, const product *p,
                               int32_t group, kv_ahead *ahead, tile *out) {
    int32_t row = first_row_of(p, group), rows = first_row_of(p, group + 1) - row;
    prefetches next = plan_prefetches(m, p->packed, group, p->num_groups, ahead);
    block_weights block = weights_of(m, p);
    multiply_rows(m, rows, in, row, &block, next, out);
}

/* False: given up, because another thread is ahead. */
static bool compute_product(const matrix *m, const sf_buffer *in, const product *p,
                            const walker *w, item i, kv_ahead *ahead, tile *tiles) {
    for (int32_t group = p->begin_group; group < p->end_group; group++) {
        if (group > p->begin_group && is_taken_over(w, i)) return false;
        multiply_one_group(m, in, p, group, ahead, tiles++);
    }
    return true;
}

static void store_product(const matrix *m, const sf_buffer *out, const epilogue *end,
                          const product *p, const tile *tiles) {
    for (int32_t group = p->begin_group; group < p->end_group; group++, tiles++) {
        int32_t row = first_row_of(p, group);
        finishing f = prepare_finishing(end, out, row, first_row_of(p, group + 1) - row);
        if (m->is_gated) {
            put_gated(f, m, p->block, tiles);
        } else {
            put_plain(f, m, p->block, tiles);
        }
    }
}

void multiply(const matrix *m, const sf_buffer *in, const sf_buffer *out, const epilogue *end,
              int32_t num_rows, walker *w, kv_ahead *ahead) {
    row_cuts cuts = cut_rows(num_rows);
    tile tiles[MAX_ITEM_GROUPS];
    item i;
    begin_multiplying(m, cuts, w);
    while (take_item(w, &i)) {
        product p = find_product(m, cuts, num_rows, i);
        if (!compute_product(m, in, &p, w, i, ahead, tiles) || !may_store(w, i)) continue;
        store_product(m, out, end, &p, tiles);
        item_done(w, i);
    }
}
