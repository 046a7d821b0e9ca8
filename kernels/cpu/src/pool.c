#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "waiting.h"

/* A number that changes, and threads that wait for its next change. On a line of its own. */
typedef struct {
    _Alignas(64) atomic_uint value;
    sleepers sleepers;
} signal_point;

typedef struct {
    pool *pool;
    int thread;
} member;

struct pool {
    int num_threads, num_looks;
    pool_task *task; /* NULL: the pool ends */
    void *context;
    pthread_t *threads; /* [num_threads - 1] */
    member *members;
    signal_point start, gate;
    _Alignas(64) atomic_int num_arrived;
};

static inline bool has_changed(signal_point *point, unsigned old) {
    return atomic_load_explicit(&point->value, memory_order_acquire) != old;
}

/* Look, then sleep: whoever looks on keeps others off the core, and may keep off whom it waits for. */
static void await_change(signal_point *point, unsigned old, int num_looks) {
    for (int i = 0; i < num_looks; i++) {
        if (has_changed(point, old)) return;
        relax();
    }
    sleep_until(&point->sleepers, &point->value, old + 1);
}

static void change(signal_point *point) {
    atomic_fetch_add(&point->value, 1);
    wake_sleepers(&point->sleepers);
}

/* Wait until all threads are here. What any of them wrote before, all see after. */
static void meet(pool *p) {
    if (p->num_threads == 1) return;
    unsigned old = atomic_load_explicit(&p->gate.value, memory_order_relaxed);
    if (atomic_fetch_add(&p->num_arrived, 1) + 1 < p->num_threads) {
        await_change(&p->gate, old, p->num_looks);
        return;
    }
    atomic_store_explicit(&p->num_arrived, 0, memory_order_relaxed);
    change(&p->gate);
}

/* A core of its own for each thread, where there are exactly as many. Two that share one take turns,
 * and since each is seldom found waiting, the kernel may leave them there for seconds while the other
 * core idles. Returns whether the thread was placed; `before` is then where it may run. */
#ifdef __linux__
static bool stay_on_core(int thread, int num_threads, cpu_set_t *before) {
    if (num_threads == 1) return false;
    if (sched_getaffinity(0, sizeof *before, before) != 0) return false;
    if (CPU_COUNT(before) != num_threads) return false;
    int core = -1;
    for (int seen = -1; seen < thread;) seen += CPU_ISSET(++core, before) != 0;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(core, &own);
    return sched_setaffinity(0, sizeof own, &own) == 0;
}

static void leave_core(const cpu_set_t *before) { sched_setaffinity(0, sizeof *before, before); }
#else
typedef int cpu_set_t;
static bool stay_on_core(int thread, int num_threads, cpu_set_t *before) {
    (void)thread, (void)num_threads, (void)before;
    return false;
}
static void leave_core(const cpu_set_t *before) { (void)before; }
#endif

static void *run_member(void *argument) {
    member *self = argument;
    pool *p = self->pool;
    cpu_set_t before;
    stay_on_core(self->thread, p->num_threads, &before);
    for (unsigned seen = 0;; seen++) {
        await_change(&p->start, seen, p->num_looks);
        if (p->task == NULL) return NULL;
        p->task(p->context, self->thread);
        meet(p);
    }
}

/* Signals are for the threads of the interpreter: these here would run no handler. */
static int start_member(pool *p, int thread) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    p->members[thread] = (member){p, thread};
    int error = pthread_create(&p->threads[thread - 1], NULL, run_member, &p->members[thread]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static void end_members(pool *p, int num_started) {
    p->task = NULL;
    change(&p->start);
    for (int i = 0; i < num_started; i++) pthread_join(p->threads[i], NULL);
}

pool *pool_create(int num_threads, int num_looks) {
    pool *p = aligned_alloc(64, (sizeof(pool) + 63) / 64 * 64);
    pthread_t *threads = calloc((size_t)num_threads, sizeof *threads);
    member *members = calloc((size_t)num_threads, sizeof *members);
    if (p == NULL || threads == NULL || members == NULL) goto out_of_memory;
    *p = (pool){.num_threads = num_threads, .num_looks = num_looks, .threads = threads, .members = members};
    init_sleepers(&p->start.sleepers);
    init_sleepers(&p->gate.sleepers);
    for (int thread = 1; thread < num_threads; thread++) {
        if (start_member(p, thread) == 0) continue;
        end_members(p, thread - 1);
        goto out_of_memory;
    }
    return p;
out_of_memory:
    free(threads);
    free(members);
    free(p);
    return NULL;
}

void pool_destroy(pool *p) {
    if (p == NULL) return;
    end_members(p, p->num_threads - 1);
    free(p->threads);
    free(p->members);
    free(p);
}

int pool_num_threads(const pool *p) { return p->num_threads; }

void pool_run(pool *p, pool_task *task, void *context) {
    /* The caller's thread is ours for the length of the task only: its children inherit its place. */
    cpu_set_t before;
    bool placed = stay_on_core(0, p->num_threads, &before);
    p->task = task;
    p->context = context;
    if (p->num_threads > 1) change(&p->start);
    task(context, 0);
    meet(p);
    if (placed) leave_core(&before);
}
