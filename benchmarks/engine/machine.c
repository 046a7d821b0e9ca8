/* What this machine can do at most: bytes read per second, multiplications per second. */

#include <stdatomic.h>
#include <time.h>

#include "memory.h"
#include "pool.h"
#include "simd.h"

enum { NUM_SUMS = 24, LINE = 64, FETCH_AHEAD = 4096, PIECE_BYTES = 1 << 20, PIECE_ROUNDS = 1000 };

/* Threads take pieces of the work as they come: a pool does not wait for one that wakes up late. */
typedef struct {
    atomic_long next;
    long num_pieces;
    const char *memory; /* that is read, PIECE_BYTES per piece */
} work;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static float read_piece(const char *begin) {
    vec sums[4] = {};
    for (long i = 0; i < PIECE_BYTES; i += 4 * LINE) {
        for (int line = 0; line < 4; line++) {
            const float *at = (const float *)(begin + i + line * LINE);
            __builtin_prefetch((const char *)at + FETCH_AHEAD);
            for (int lane = 0; lane < LINE / 4; lane += LANES) sums[line] += load(at + lane);
        }
    }
    return sum_lanes(sums[0] + sums[1] + sums[2] + sums[3]);
}

static void read_pieces(void *context, int thread) {
    (void)thread;
    work *w = context;
    volatile float sink = 0;
    for (long i; (i = w->next++) < w->num_pieces;) sink += read_piece(w->memory + i * PIECE_BYTES);
}

/* Bytes per second that all threads read together, from memory far larger than any cache. */
double measure_read(int num_threads, long num_bytes) {
    size_t mapped = (size_t)num_bytes + FETCH_AHEAD;
    char *memory = map_memory(mapped);
    pool *threads = pool_create(num_threads, 100);
    for (size_t i = 0; i < mapped; i += LINE) memory[i] = 0;
    work w = {.num_pieces = num_bytes / PIECE_BYTES, .memory = memory};
    double begin = seconds();
    pool_run(threads, read_pieces, &w);
    double took = seconds() - begin;
    pool_destroy(threads);
    unmap_memory(memory, mapped);
    return (double)w.num_pieces * PIECE_BYTES / took;
}

/* Equal sums would be computed once. */
INLINE void start_apart(vec *sums) {
    for (int s = 0; s < NUM_SUMS; s++) sums[s] = splat((float)s);
}

/* Or nothing would be computed. */
INLINE void keep(vec *sums) {
    for (int s = 1; s < NUM_SUMS; s++) sums[0] += sums[s];
    volatile float sink = sum_lanes(sums[0]);
    (void)sink;
}

static void multiply_float32(void *context, int thread) {
    (void)thread;
    work *w = context;
    vec sums[NUM_SUMS], x = splat(1e-30f);
    start_apart(sums);
    while (w->next++ < w->num_pieces) {
        for (int i = 0; i < PIECE_ROUNDS; i++) {
#pragma GCC unroll 24
            for (int s = 0; s < NUM_SUMS; s++) sums[s] = fma_vec(x, x, sums[s]);
        }
    }
    keep(sums);
}

static void multiply_bf16(void *context, int thread) {
    (void)thread;
    work *w = context;
    vec sums[NUM_SUMS];
    uvec x = (uvec)splat(1e-30f);
    start_apart(sums);
    while (w->next++ < w->num_pieces) {
        for (int i = 0; i < PIECE_ROUNDS; i++) {
#pragma GCC unroll 24
            for (int s = 0; s < NUM_SUMS; s++) sums[s] = dot_pairs(sums[s], x, x);
        }
    }
    keep(sums);
}

/* Floating-point operations per second of all threads together, out of registers. */
double measure_flops(int num_threads, int is_bf16, long num_rounds) {
    pool *threads = pool_create(num_threads, 100);
    work w = {.num_pieces = num_rounds / PIECE_ROUNDS};
    double begin = seconds();
    pool_run(threads, is_bf16 ? multiply_bf16 : multiply_float32, &w);
    double took = seconds() - begin;
    pool_destroy(threads);
    double per_round = NUM_SUMS * LANES * (is_bf16 ? 4.0 : 2.0);
    return per_round * PIECE_ROUNDS * (double)w.num_pieces / took;
}
