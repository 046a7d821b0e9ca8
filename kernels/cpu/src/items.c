#include "items.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "waiting.h"

enum {
    /* An item that another thread has begun is begun again after num_looks / this many looks. */
    HASTE = 4,
    STATES_PER_LINE = 16,
    /* Few, since each costs a turn of a cache line; several, so that one may be late. */
    ROW_ITEMS_PER_THREAD = 4,
};

/* Phases of hours; then all starts at 0 again. */
static const uint32_t LAST_PHASE = UINT32_MAX / 16;

/* How many items of a queue are taken in which phase: phase << 32 | count. On a line of its own. */
typedef struct {
    _Alignas(64) atomic_ullong taken;
} item_queue;

struct item_board {
    int num_threads, num_looks;
    uint32_t phase;      /* the last one before the step that runs: all threads read it */
    uint32_t last_phase; /* of that step, once a thread is through it */
    item_queue *queues;
    int32_t *counts; /* [num_threads][num_threads], lines apart */
    int32_t counts_stride;
    atomic_uint *states; /* [num_threads][capacity] */
    int64_t capacity;
    sleepers sleepers;
};

/* The states of an item, which only grow; below begun_again(phase) it is open. */
static uint32_t begun_again(uint32_t phase) { return 4 * phase + 1; }

static uint32_t being_stored(uint32_t phase) { return 4 * phase + 2; }

static uint32_t done(uint32_t phase) { return 4 * phase + 3; }

static atomic_uint *state_of(const item_board *board, int32_t queue, int32_t index) {
    return &board->states[queue * board->capacity + index];
}

/* ── its life ──────────────────────────────────────────────────────────────────────────────── */

static void *allocate_lines(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, bytes);
    if (memory != NULL) memset(memory, 0, bytes);
    return memory;
}

item_board *create_items(int num_threads, int num_looks) {
    item_board *board = calloc(1, sizeof *board);
    if (board == NULL) return NULL;
    size_t threads = (size_t)num_threads;
    board->num_threads = num_threads;
    board->num_looks = num_looks;
    board->counts_stride = (num_threads + STATES_PER_LINE - 1) / STATES_PER_LINE * STATES_PER_LINE;
    board->queues = allocate_lines(threads * sizeof *board->queues);
    board->counts =
        allocate_lines(threads * (size_t)board->counts_stride * sizeof *board->counts);
    init_sleepers(&board->sleepers);
    if (board->queues != NULL && board->counts != NULL) return board;
    destroy_items(board);
    return NULL;
}

void destroy_items(item_board *board) {
    if (board == NULL) return;
    free(board->queues);
    free(board->counts);
    free(board->states);
    destroy_sleepers(&board->sleepers);
    free(board);
}

static int32_t make_room(item_board *board, int64_t num_items) {
    if (num_items <= board->capacity) return 0;
    int64_t capacity = (2 * num_items / STATES_PER_LINE + 1) * STATES_PER_LINE;
    size_t num_states = (size_t)(board->num_threads * capacity);
    free(board->states);
    board->states = allocate_lines(num_states * sizeof *board->states);
    board->capacity = board->states == NULL ? 0 : capacity;
    return board->states == NULL ? -1 : 0;
}

static void start_phases_at_0(item_board *board) {
    size_t threads = (size_t)board->num_threads;
    memset(board->states, 0, threads * (size_t)board->capacity * sizeof *board->states);
    memset(board->queues, 0, threads * sizeof *board->queues);
    board->phase = 0;
}

int32_t begin_step(item_board *board, int64_t num_items) {
    if (make_room(board, num_items) != 0) return -1;
    board->phase = board->last_phase;
    if (board->phase > LAST_PHASE) start_phases_at_0(board);
    return 0;
}

walker walk_from_start(item_board *board, int thread) {
    return (walker){
        .board = board,
        .thread = thread,
        .phase = board->phase,
        .counts = board->counts + (int64_t)thread * board->counts_stride,
    };
}

void end_step(const walker *w) { w->board->last_phase = w->phase; }

int num_walkers(const walker *w) { return w->board->num_threads; }

/* ── phases ────────────────────────────────────────────────────────────────────────────────── */

void begin_phase(walker *w) {
    w->phase++;
    w->at_queue = w->at_item = 0;
}

void begin_dealt_phase(walker *w, int64_t num_items) {
    int num_threads = w->board->num_threads;
    begin_phase(w);
    for (int q = 0; q < num_threads; q++) {
        w->counts[q] = (int32_t)((num_items + num_threads - 1 - q) / num_threads);
    }
}

int64_t dealt_number(const walker *w, item i) {
    return (int64_t)i.index * w->board->num_threads + i.queue;
}

/* ── items ─────────────────────────────────────────────────────────────────────────────────── */

enum taken { TAKEN, NONE_LEFT, PHASE_IS_OVER };

/* A count of an earlier phase means that nothing of this one is taken. */
static enum taken take_from(const walker *w, int32_t queue, item *i) {
    atomic_ullong *taken = &w->board->queues[queue].taken;
    unsigned long long before = atomic_load_explicit(taken, memory_order_acquire);
    for (;;) {
        uint32_t phase = (uint32_t)(before >> 32), count = (uint32_t)before;
        if (phase > w->phase) return PHASE_IS_OVER;
        if (phase < w->phase) count = 0;
        if ((int32_t)count >= w->counts[queue]) return NONE_LEFT;
        unsigned long long after = (unsigned long long)w->phase << 32 | (count + 1);
        if (atomic_compare_exchange_weak_explicit(taken, &before, after, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *i = (item){queue, (int32_t)count};
            return TAKEN;
        }
    }
}

/* Move on over what is done. False: everything is. */
static bool find_undone(walker *w) {
    for (; w->at_queue < w->board->num_threads; w->at_queue++, w->at_item = 0) {
        for (; w->at_item < w->counts[w->at_queue]; w->at_item++) {
            const atomic_uint *state = state_of(w->board, w->at_queue, w->at_item);
            if (atomic_load_explicit(state, memory_order_acquire) < done(w->phase)) return true;
        }
    }
    return false;
}

/* Once per item and phase: where many threads wait, one is enough to do it again. */
static bool begin_again(const walker *w, atomic_uint *state) {
    unsigned before = atomic_load_explicit(state, memory_order_relaxed);
    return before < begun_again(w->phase) &&
           atomic_compare_exchange_strong(state, &before, begun_again(w->phase));
}

/* Wait until all is done, or find an item to begin again: then true. */
static bool await_others(walker *w, item *i) {
    int num_looks = w->board->num_looks, patience = num_looks / HASTE;
    for (int looks = 0; find_undone(w); looks++) {
        atomic_uint *state = state_of(w->board, w->at_queue, w->at_item);
        if (looks >= patience && begin_again(w, state)) {
            *i = (item){w->at_queue, w->at_item};
            return true;
        }
        if (looks >= num_looks) sleep_until(&w->board->sleepers, state, done(w->phase));
        relax();
    }
    return false;
}

bool take_item(walker *w, item *i) {
    int num_threads = w->board->num_threads;
    for (int n = 0; n < num_threads; n++) {
        enum taken taken = take_from(w, (w->thread + n) % num_threads, i);
        if (taken == PHASE_IS_OVER) return false;
        if (taken == TAKEN) return true;
    }
    return await_others(w, i);
}

bool is_taken_over(const walker *w, item i) {
    const atomic_uint *state = state_of(w->board, i.queue, i.index);
    return atomic_load_explicit(state, memory_order_relaxed) >= being_stored(w->phase);
}

bool may_store(const walker *w, item i) {
    atomic_uint *state = state_of(w->board, i.queue, i.index);
    unsigned before = atomic_load_explicit(state, memory_order_relaxed);
    return before < being_stored(w->phase) &&
           atomic_compare_exchange_strong(state, &before, being_stored(w->phase));
}

void item_done(const walker *w, item i) {
    atomic_store(state_of(w->board, i.queue, i.index), done(w->phase));
    wake_sleepers(&w->board->sleepers);
}

/* ── rows ──────────────────────────────────────────────────────────────────────────────────── */

void for_rows(walker *w, int32_t num_rows, rows_task *task, void *context) {
    int32_t most_items = ROW_ITEMS_PER_THREAD * num_walkers(w);
    int32_t size = (num_rows + most_items - 1) / most_items;
    item i;
    begin_dealt_phase(w, size == 0 ? 0 : (num_rows + size - 1) / size);
    while (take_item(w, &i)) {
        if (!may_store(w, i)) continue;
        int32_t begin = (int32_t)dealt_number(w, i) * size;
        task(context, (row_range){begin, begin + size < num_rows ? begin + size : num_rows});
        item_done(w, i);
    }
}
