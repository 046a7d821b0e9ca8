/* What this machine can do at most: bytes read per second, multiplications per second. */

#include <time.h>

#include "memory.h"
#include "pool.h"
#include "simd.h"

enum { NUM_SUMS = 24, LINE = 64, FETCH_AHEAD = 4096, SLACK = 2 * 67 * LINE };

typedef struct {
    const char *memory;
    long num_bytes; /* per thread */
    float sink;
} reading;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void read_share(void *context, int thread) {
    reading *r = context;
    const char *begin = r->memory + thread * (r->num_bytes + 67 * LINE);
    vec sums[4] = {};
    for (long i = 0; i < r->num_bytes; i += 4 * LINE) {
        for (int line = 0; line < 4; line++) {
            const float *at = (const float *)(begin + i + line * LINE);
            __builtin_prefetch((const char *)at + FETCH_AHEAD);
            for (int lane = 0; lane < LINE / 4; lane += LANES) sums[line] += load(at + lane);
        }
    }
    if (sum_lanes(sums[0] + sums[1] + sums[2] + sums[3]) > 0) r->sink = 1;
}

/* Bytes per second that all threads read together, from memory far larger than any cache. */
double measure_read(int num_threads, long bytes_per_thread) {
    size_t num_bytes = (size_t)(bytes_per_thread + SLACK) * (size_t)num_threads + FETCH_AHEAD;
    char *memory = map_memory(num_bytes);
    pool *threads = pool_create(num_threads, 100);
    for (size_t i = 0; i < num_bytes; i += LINE) memory[i] = 0;
    reading r = {memory, bytes_per_thread, 0};
    double begin = seconds();
    pool_run(threads, read_share, &r);
    double took = seconds() - begin;
    pool_destroy(threads);
    unmap_memory(memory, num_bytes);
    return (double)bytes_per_thread * num_threads / took;
}

/* Equal sums would be computed once. */
INLINE void start_apart(vec *sums) {
    for (int s = 0; s < NUM_SUMS; s++) sums[s] = splat((float)s);
}

static void multiply_float32(void *context, int thread) {
    (void)thread;
    vec sums[NUM_SUMS], x = splat(1e-30f);
    start_apart(sums);
    for (long i = 0; i < *(long *)context; i++) {
#pragma GCC unroll 24
        for (int s = 0; s < NUM_SUMS; s++) sums[s] = fma_vec(x, x, sums[s]);
    }
    for (int s = 1; s < NUM_SUMS; s++) sums[0] += sums[s];
    volatile float sink = sum_lanes(sums[0]);
    (void)sink;
}

static void multiply_bf16(void *context, int thread) {
    (void)thread;
    vec sums[NUM_SUMS];
    uvec x = (uvec)splat(1e-30f);
    start_apart(sums);
    for (long i = 0; i < *(long *)context; i++) {
#pragma GCC unroll 24
        for (int s = 0; s < NUM_SUMS; s++) sums[s] = dot_pairs(sums[s], x, x);
    }
    for (int s = 1; s < NUM_SUMS; s++) sums[0] += sums[s];
    volatile float sink = sum_lanes(sums[0]);
    (void)sink;
}

/* Floating-point operations per second of all threads together, out of registers. */
double measure_flops(int num_threads, int is_bf16, long num_rounds) {
    pool *threads = pool_create(num_threads, 100);
    double begin = seconds();
    pool_run(threads, is_bf16 ? multiply_bf16 : multiply_float32, &num_rounds);
    double took = seconds() - begin;
    pool_destroy(threads);
    double per_round = NUM_SUMS * LANES * (is_bf16 ? 4.0 : 2.0);
    return per_round * (double)num_rounds * num_threads / took;
}
