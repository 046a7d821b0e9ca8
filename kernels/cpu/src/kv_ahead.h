/* The keys and values that the next attention reads, fetched while matrices are multiplied.
 *
 * Attention waits for memory, products of many rows for arithmetic, and they take turns. So a loop
 * that multiplies fetches in every step a line or two of what is read next. Evenly: at once it would take
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

/* What is left for one thread; zeroed: nothing. It goes through the items of attention that will be
 * dealt to the thread, in their order. An item's blocks come in runs, whose keys lie side by side,
 * and whose values do. */
typedef struct {
    const kv_layer *kv;
    const sf_batch *batch;
    const attention_work *work;
    int32_t group_size; /* rows of a token */
    int64_t lines_to_wait, bytes_left, bytes_per_line;
    int32_t num_threads;
    int64_t item;               /* number of it */
    int32_t run_begin, run_end; /* places in the sequence's block table */
    int64_t fetched;            /* bytes of the run's keys and then values */
} kv_ahead;

/* Until attention: the lines that all loops in all threads together can fetch, and the bytes of
 * weights. */
typedef struct {
    int64_t num_lines, weight_bytes;
} way;

/* What `op` will read, by its planned work, as far as a cache can keep it. */
kv_ahead look_ahead(const sf_op *op, const kv_layer *kv, const sf_batch *batch,
                    const attention_work *work, way until, int32_t thread, int32_t num_threads);

/* What a loop of so many steps fetches; from NULL if nothing is left. */
prefetch next_ahead(kv_ahead *ahead, int64_t num_steps, int32_t lines_per_step);

#endif
