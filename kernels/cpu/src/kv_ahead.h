/* The keys and values that the next attention reads, fetched while matrices are multiplied.
 *
 * Attention waits for memory, products of many rows for arithmetic, and they take turns. So a loop
 * that multiplies fetches in every step a line of what is read next. Evenly: at once it would take
 * the memory from the weights. And no more, and no sooner, than a cache can keep beside the weights
 * that pass through it until then.
 */
#ifndef SPLITFUSE_KV_AHEAD_H
#define SPLITFUSE_KV_AHEAD_H

#include "attention.h"

/* Where a loop fetches: `step * bytes_per_step` bytes from `begin`. */
typedef struct {
    const char *begin;
    int64_t bytes_per_step;
} prefetch;

/* What is left for one thread; zeroed: nothing. Readers are the KV heads of all sequences, dealt to
 * the threads in turns, as attention deals its items. A reader's blocks come in runs, whose keys lie
 * side by side, and whose values do. */
typedef struct {
    const sf_op *op; /* the attention */
    const kv_layer *kv;
    const sf_batch *batch;
    int64_t steps_to_wait, bytes_left, bytes_per_step;
    int32_t num_threads;
    int64_t reader;             /* sequence * num_kv_heads + KV head */
    int32_t run_begin, run_end; /* places in the sequence's block table */
    int64_t fetched;            /* bytes of the run's keys and then values */
} kv_ahead;

/* Until attention: the steps of all loops in all threads together, and the bytes of weights. */
typedef struct {
    int64_t num_steps, weight_bytes;
} way;

/* What `op` will read, as far as a cache can keep it. */
kv_ahead look_ahead(const sf_op *op, const kv_layer *kv, const sf_batch *batch, way until,
                    int32_t thread, int32_t num_threads);

/* What a loop of so many steps fetches; from NULL if nothing is left. */
prefetch next_ahead(kv_ahead *ahead, int64_t num_steps);

#endif
