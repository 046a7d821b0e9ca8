#include "sampling.h"

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "errors.h"
#include "philox.h"
#include "simd.h"
#include "threshold.h"

/* All truncations keep what is at least as likely as some threshold, so a row is drawn in two steps:
 * find the threshold, then let those above it race. Both look at blocks of neighbouring ids by their
 * largest logit first, and into few of them. Likelihoods are relative to the likeliest id: p = 1. */

enum { BLOCK_IDS = VALUES_AT_ONCE };
_Static_assert(BLOCK_IDS == IDS_PER_CALL * LANES, "a block is one call of philox_words");

/* More than what exp2_vec is wrong by: a bound with it holds in spite of that. */
static const float SLACK = 1e-5f;
/* Noise is -log((word + 1/2) / WORDS), at least 1/2 / WORDS. */
static const double WORDS = 4294967296.0;

/* What one thread works with; likelihoods in 0..1. */
typedef struct {
    float *blocks; /* [num_blocks, padded] largest logit of each block, then its likelihood */
    float *values; /* [vocab_size, padded] likelihoods of the blocks that are looked into */
    float *spare;  /* [vocab_size, padded] for thresholds */
} scratch;

struct sf_sampler {
    pool *threads;
    int32_t vocab_size, num_blocks;
    float *memory;
    scratch *scratches; /* [num_threads] */
};

/* One row. */
typedef struct {
    const float *logits;
    int32_t vocab_size, num_blocks;
    float largest, scale; /* p = 2^((logit - largest) * scale) */
    const scratch *scratch;
} row_view;

static int32_t round_up(int32_t n) {
    return (n + VALUES_AT_ONCE - 1) / VALUES_AT_ONCE * VALUES_AT_ONCE;
}

/* ── blocks ────────────────────────────────────────────────────────────────────────────────── */

/* The logits of a block; of the last one, a copy with -inf behind the vocabulary's end. */
INLINE const float *block_logits(const float *logits, int32_t vocab_size, int32_t block,
                                 float padded[BLOCK_IDS]) {
    int32_t first = block * BLOCK_IDS;
    if (first <= vocab_size - BLOCK_IDS) return logits + first;
    for (int32_t i = 0; i < BLOCK_IDS; i++) {
        padded[i] = first + i < vocab_size ? logits[first + i] : -INFINITY;
    }
    return padded;
}

/* The largest logit of each block; returns the largest of all, NaN if one logit is. */
static float find_largest(const float *logits, int32_t vocab_size, int32_t num_blocks,
                          float *blocks) {
    float padded[BLOCK_IDS], largest = -INFINITY;
    ivec is_nan = {};
    for (int32_t block = 0; block < num_blocks; block++) {
        const float *p = block_logits(logits, vocab_size, block, padded);
        vec a = load(p), b = load(p + LANES), c = load(p + 2 * LANES), d = load(p + 3 * LANES);
        is_nan |= (a != a) | (b != b) | (c != c) | (d != d);
        blocks[block] = max_lanes(max_vec(max_vec(a, b), max_vec(c, d)));
        largest = blocks[block] > largest ? blocks[block] : largest;
    }
    for (int lane = 0; lane < LANES; lane++) {
        if (is_nan[lane]) return NAN;
    }
    return largest;
}

static int32_t first_block_with(const float *blocks, int32_t num_blocks, float largest) {
    int32_t block = 0;
    while (block < num_blocks - 1 && blocks[block] != largest) block++;
    return block;
}

static int32_t first_id_with(const float *logits, int32_t vocab_size, int32_t block, float largest) {
    int32_t id = block * BLOCK_IDS;
    while (id < vocab_size - 1 && logits[id] != largest) id++;
    return id;
}

/* ── likelihoods ───────────────────────────────────────────────────────────────────────────── */

INLINE vec likelihood_vec(const row_view *row, vec logits) {
    return exp2_vec((logits - row->largest) * row->scale);
}

/* From the largest logit of each block to its likelihood; 0 behind the last block. */
static void make_likelihoods(const row_view *row, float *blocks) {
    int32_t end = round_up(row->num_blocks);
    for (int32_t i = row->num_blocks; i < end; i++) blocks[i] = 0;
    for (int32_t i = 0; i < end; i += LANES) {
        store(blocks + i, likelihood_vec(row, load(blocks + i)));
    }
    for (int32_t i = row->num_blocks; i < end; i++) blocks[i] = 0;
}

/* Likelihoods of all ids of the blocks that reach `bound`; returns how many there are. */
static int32_t gather_likelihoods(const row_view *row, float bound) {
    float padded[BLOCK_IDS];
    float *to = row->scratch->values;
    for (int32_t block = 0; block < row->num_blocks; block++) {
        if (row->scratch->blocks[block] < bound) continue;
        const float *from = block_logits(row->logits, row->vocab_size, block, padded);
        for (int32_t i = 0; i < BLOCK_IDS; i += LANES) {
            store(to + i, likelihood_vec(row, load(from + i)));
        }
        to += BLOCK_IDS;
    }
    return (int32_t)(to - row->scratch->values);
}

/* What an id must reach to stay: steps 5 to 7. */
static float find_threshold(const row_view *row, int64_t top_k, double top_p, float min_p) {
    const scratch *s = row->scratch;
    bool has_top_k = top_k < row->vocab_size;
    if (!has_top_k && top_p >= 1) return min_p;
    /* The k blocks with the largest maxima hold k ids that reach the smallest of these. */
    float bound = 0;
    if (top_k <= row->num_blocks) {
        bound = threshold_of_count(s->blocks, round_up(row->num_blocks), s->spare, 0, top_k);
    }
    int32_t count = gather_likelihoods(row, bound * (1 - SLACK));
    float threshold = min_p;
    if (has_top_k) threshold = threshold_of_count(s->values, count, s->spare, threshold, top_k);
    if (top_p < 1) {
        double mass = mass_from(s->values, count, threshold);
        /* All that are less likely than this are together too few to be needed. */
        float needless = (float)((1 - top_p) * mass / count) * (1 - SLACK);
        float at_least = needless > threshold ? needless : threshold;
        threshold = threshold_of_mass(s->values, count, s->spare, at_least, top_p * mass);
    }
    return threshold;
}

/* ── the race ──────────────────────────────────────────────────────────────────────────────── */

/* Who is ahead: the largest likelihood / noise. */
typedef struct {
    double score;
    int32_t id;
} leader;

/* Words below this cannot lead. Noise e = -log(u) is at least 1 - u, so p / e > score asks for
 * 1 - u < p / score; u = (word + 1/2) / 2^32. */
INLINE uint32_t least_word(float p, double score) {
    double room = (double)p * (1 + SLACK) / score;
    return room < 1 ? (uint32_t)((1 - room) * (WORDS - 1)) : 0;
}

/* Let one id run; the same as its likelihood / noise > score, but most need no logarithm. */
static void run(const row_view *row, int32_t id, uint32_t word, float threshold, leader *best) {
    float p = likelihood_vec(row, splat(row->logits[id]))[0];
    if (p < threshold || word < least_word(p, best->score)) return;
    double score = p / -log((word + 0.5) / WORDS);
    if (score > best->score || (score == best->score && id < best->id)) {
        *best = (leader){score, id};
    }
}

INLINE bool any_lane(uvec mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    uint32_t all = 0;
    for (int lane = 0; lane < LANES; lane++) all |= mask[lane];
    return all != 0;
#endif
}

static void run_block(const row_view *row, philox_stream stream, int32_t block, float threshold,
                      leader *best) {
    float p = row->scratch->blocks[block];
    if (2 * WORDS * p * (1 + SLACK) < best->score) return; /* not even with the least noise */
    uint32_t least = least_word(p, best->score);
    uvec words[IDS_PER_CALL], can_lead = {};
    philox_words(stream, (uint32_t)block * LANES, words);
    for (int w = 0; w < IDS_PER_CALL; w++) can_lead |= (uvec)(words[w] >= least);
    if (!any_lane(can_lead)) return;
    int32_t first = block * BLOCK_IDS;
    for (int32_t i = 0; i < BLOCK_IDS && first + i < row->vocab_size; i++) {
        uint32_t word = words[i % IDS_PER_CALL][i / IDS_PER_CALL];
        if (word >= least) run(row, first + i, word, threshold, best);
    }
}

static int32_t draw(const row_view *row, philox_stream stream, float threshold) {
    const float *blocks = row->scratch->blocks;
    int32_t likeliest = first_block_with(blocks, row->num_blocks, 1);
    leader best = {0, 0};
    run_block(row, stream, likeliest, threshold, &best); /* a score that is hard to beat */
    for (int32_t block = 0; block < row->num_blocks; block++) {
        if (blocks[block] < threshold * (1 - SLACK)) continue;
        run_block(row, stream, block, threshold, &best);
    }
    return best.id;
}

/* ── rows by threads ───────────────────────────────────────────────────────────────────────── */

typedef struct {
    const sf_sampler *sampler;
    const float *logits;
    int32_t num_rows;
    atomic_int next_row;
    int64_t *token_ids;
    float *largest;                  /* of argmax */
    const int64_t *rows;             /* of sample */
    const sf_randomness *randomness; /* of sample */
} batch;

static void argmax_in_thread(void *context, int thread) {
    batch *b = context;
    int32_t vocab_size = b->sampler->vocab_size, num_blocks = b->sampler->num_blocks;
    float *blocks = b->sampler->scratches[thread].blocks;
    for (int i; (i = atomic_fetch_add(&b->next_row, 1)) < b->num_rows;) {
        const float *logits = b->logits + (int64_t)i * vocab_size;
        float largest = find_largest(logits, vocab_size, num_blocks, blocks);
        int32_t block = first_block_with(blocks, num_blocks, largest);
        b->largest[i] = largest;
        b->token_ids[i] = first_id_with(logits, vocab_size, block, largest);
    }
}

static int32_t sample_row(const sf_sampler *sampler, const scratch *s, const float *logits,
                          const sf_randomness *r, int32_t i) {
    float largest = find_largest(logits, sampler->vocab_size, sampler->num_blocks, s->blocks);
    float scale = fminf(1.44269504f / r->temperature[i], 1e30f); /* 0 * infinity is NaN */
    row_view row = {logits, sampler->vocab_size, sampler->num_blocks, largest, scale, s};
    make_likelihoods(&row, s->blocks);
    float threshold = find_threshold(&row, r->top_k[i], r->top_p[i], r->min_p[i]);
    philox_stream stream = {(uint64_t)r->seeds[i], (uint64_t)r->positions[i]};
    return draw(&row, stream, threshold);
}

static void sample_in_thread(void *context, int thread) {
    batch *b = context;
    const scratch *s = &b->sampler->scratches[thread];
    for (int i; (i = atomic_fetch_add(&b->next_row, 1)) < b->num_rows;) {
        const float *logits = b->logits + b->rows[i] * b->sampler->vocab_size;
        b->token_ids[i] = sample_row(b->sampler, s, logits, b->randomness, i);
    }
}

static int check_row(const sf_randomness *r, int64_t row, int32_t num_logits_rows, int32_t i) {
    if (row < 0 || row >= num_logits_rows) {
        return fail("sampling: row %lld of %d", (long long)row, num_logits_rows);
    }
    if (!(r->temperature[i] > 0) || r->top_k[i] < 1 || !(r->top_p[i] > 0) ||
        !(r->min_p[i] >= 0 && r->min_p[i] <= 1)) {
        return fail("sampling row %lld: temperature %g, top_k %lld, top_p %g, min_p %g",
                    (long long)row, r->temperature[i], (long long)r->top_k[i], r->top_p[i],
                    r->min_p[i]);
    }
    return 0;
}

/* ── the library's calls ───────────────────────────────────────────────────────────────────── */

/* Logits that are looked through in less time than it takes to wake another thread. */
enum { FEW_LOGITS = 200000 };

static void run_rows(batch *b, pool_task *task) {
    if (b->num_rows <= 1 || (int64_t)b->num_rows * b->sampler->vocab_size <= FEW_LOGITS) {
        task(b, 0);
    } else {
        pool_run(b->sampler->threads, task, b);
    }
}

void sf_argmax(sf_sampler *sampler, const float *logits, int32_t num_rows, int64_t *token_ids,
               float *largest) {
    batch b = {.sampler = sampler, .logits = logits, .num_rows = num_rows};
    b.token_ids = token_ids;
    b.largest = largest;
    run_rows(&b, argmax_in_thread);
}

int32_t sf_sample(sf_sampler *sampler, const float *logits, int32_t num_logits_rows,
                  const int64_t *rows, int32_t num_rows, const sf_randomness *randomness,
                  int64_t *token_ids) {
    for (int32_t i = 0; i < num_rows; i++) {
        if (check_row(randomness, rows[i], num_logits_rows, i) != 0) return -1;
    }
    batch b = {.sampler = sampler, .logits = logits, .num_rows = num_rows};
    b.token_ids = token_ids;
    b.rows = rows;
    b.randomness = randomness;
    run_rows(&b, sample_in_thread);
    return 0;
}

sf_sampler *sf_create_sampler(pool *threads, int32_t vocab_size) {
    if (vocab_size < 1 || vocab_size > INT32_MAX / 2) {
        fail("sampling: a vocabulary of %d", vocab_size);
        return NULL;
    }
    int num_threads = pool_num_threads(threads);
    int32_t num_blocks = (vocab_size + BLOCK_IDS - 1) / BLOCK_IDS;
    size_t block_floats = (size_t)round_up(num_blocks);
    size_t value_floats = (size_t)round_up(vocab_size) + 2 * VALUES_AT_ONCE;
    size_t floats = block_floats + 2 * value_floats;
    sf_sampler *sampler = malloc(sizeof *sampler);
    scratch *scratches = malloc((size_t)num_threads * sizeof *scratches);
    float *memory = malloc((size_t)num_threads * floats * sizeof *memory);
    if (sampler == NULL || scratches == NULL || memory == NULL) {
        free(sampler);
        free(scratches);
        free(memory);
        fail("sampling: out of memory");
        return NULL;
    }
    for (int i = 0; i < num_threads; i++) {
        float *own = memory + (size_t)i * floats;
        scratches[i] = (scratch){own, own + block_floats, own + block_floats + value_floats};
    }
    *sampler = (sf_sampler){threads, vocab_size, num_blocks, memory, scratches};
    return sampler;
}

void sf_destroy_sampler(sf_sampler *sampler) {
    if (sampler == NULL) return;
    free(sampler->memory);
    free(sampler->scratches);
    free(sampler);
}
