/* How the threads of a step share out its work without waiting for one that has lost its core.
 *
 * A step is a row of phases, mostly one per op, and a phase a number of items. Each thread walks
 * through all phases: it takes items of its own queue, then of others' queues, and goes on when all
 * items are done, whoever did them. Services and clients run on the same cores; where one of them
 * has taken a thread's core for a while, that thread is not waited for: the others do its items, and
 * the one that it had begun is begun again by another.
 *
 * So an item can be computed twice at a time, but only one thread may store its results:
 *
 *     while (take_item(w, &i)) {
 *         compute, into memory of this thread; it may be in vain, on inputs that are gone
 *         if (!may_store(w, i)) continue;
 *         store
 *         item_done(w, i);
 *     }
 *
 * Work that is short, or that changes what it reads, asks may_store first: then nobody else begins
 * it, and whoever needs it waits.
 *
 * Threads never meet between the phases of a step, only at its end. One that comes back late finds
 * that its phase is over, and walks on to where the others are.
 */
#ifndef SPLITFUSE_ITEMS_H
#define SPLITFUSE_ITEMS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct item_board item_board;

/* A thread on its way through a step. */
typedef struct {
    item_board *board;
    int thread;
    uint32_t phase;           /* the number of it, over all steps */
    int32_t *counts;          /* [num_threads] items of each queue in this phase */
    int32_t at_queue, at_item; /* all before were seen done */
} walker;

typedef struct {
    int32_t queue, index; /* item `index` of the queue of a thread */
} item;

/* num_looks: how often a thread looks whether an item is done, before it sleeps. NULL without
 * memory. */
item_board *create_items(int num_threads, int num_looks);

void destroy_items(item_board *board);

/* Before the threads walk: room for phases of up to `num_items` in one queue. Returns 0, or -1
 * without memory. */
int32_t begin_step(item_board *board, int64_t num_items);

walker walk_from_start(item_board *board, int thread);

/* In one thread, after all phases. */
void end_step(const walker *w);

int num_walkers(const walker *w);

/* Begin the next phase; `counts` of it are still to be set. Every thread begins the same phases. */
void begin_phase(walker *w);

/* Begin a phase of `num_items`, dealt to the queues in turns; see dealt_number. */
void begin_dealt_phase(walker *w, int64_t num_items);

int64_t dealt_number(const walker *w, item i);

/* The next item to do. False: all are done, and what was stored for them is seen. */
bool take_item(walker *w, item *i);

/* Whether another thread stores the item or has: what is being computed for it is in vain. */
bool is_taken_over(const walker *w, item i);

/* Whether this thread is the one to store the item. */
bool may_store(const walker *w, item i);

void item_done(const walker *w, item i);

/* Rows [begin, end) of an item. */
typedef struct {
    int32_t begin, end;
} row_range;

typedef void rows_task(void *context, row_range rows);

/* Run a task over all rows, each of them once. A phase of its own; called by all threads. */
void for_rows(walker *w, int32_t num_rows, rows_task *task, void *context);

#endif
