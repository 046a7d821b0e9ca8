#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "waiting.h"

/* A number, and threads that wait until it has reached another. On a line of its own. */
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
    signal_point run;    /* odd: members may come in; then even again */
    signal_point inside; /* minus the members that are */
};

/* Look, then sleep: whoever looks on keeps others off the core, and may keep off whom it waits for. */
static void await(signal_point *point, unsigned wanted, int num_looks) {
    for (int i = 0; i < num_looks; i++) {
        unsigned value = atomic_load_explicit(&point->value, memory_order_acquire);
        if (has_reached(value, wanted)) return;
        relax();
    }
    sleep_until(&point->sleepers, &point->value, wanted);
}

static void raise_by_one(signal_point *point) {
    atomic_fetch_add(&point->value, 1);
    wake_sleepers(&point->sleepers);
}

/* A member says that it is inside before it looks whether the run goes on, and the caller ends the
 * run before it looks who is inside: so one of them sees the other. */
static bool enter(pool *p, unsigned run) {
    atomic_fetch_sub(&p->inside.value, 1);
    return atomic_load(&p->run.value) == run;
}

/* What those inside have written, all see after. */
static void end_run(pool *p) {
    atomic_fetch_add(&p->run.value, 1);
    await(&p->inside, 0, p->num_looks);
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
    for (unsigned run = 1;; run += 2) {
        await(&p->run, run, p->num_looks);
        run = (atomic_load(&p->run.value) - 1) | 1; /* the last: some may have been missed */
        bool is_on = enter(p, run);
        if (is_on && p->task == NULL) return NULL;
        if (is_on) p->task(p->context, self->thread);
        raise_by_one(&p->inside);
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
    raise_by_one(&p->run);
    for (int i = 0; i < num_started; i++) pthread_join(p->threads[i], NULL);
}

pool *pool_create(int num_threads, int num_looks) {
    pool *p = aligned_alloc(64, (sizeof(pool) + 63) / 64 * 64);
    pthread_t *threads = calloc((size_t)num_threads, sizeof *threads);
    member *members = calloc((size_t)num_threads, sizeof *members);
    if (p == NULL || threads == NULL || members == NULL) goto out_of_memory;
    *p = (pool){.num_threads = num_threads, .num_looks = num_looks, .threads = threads, .members = members};
    init_sleepers(&p->run.sleepers);
    init_sleepers(&p->inside.sleepers);
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
    destroy_sleepers(&p->run.sleepers);
    destroy_sleepers(&p->inside.sleepers);
    free(p->threads);
    free(p->members);
    free(p);
}

int pool_num_threads(const pool *p) { return p->num_threads; }

void pool_run(pool *p, pool_task *task, void *context) {
    if (p->num_threads == 1) {
        task(context, 0);
        return;
    }
    /* The caller's thread is ours for the length of the task only: its children inherit its place. */
    cpu_set_t before;
    bool placed = stay_on_core(0, p->num_threads, &before);
    p->task = task;
    p->context = context;
    raise_by_one(&p->run);
    task(context, 0);
    end_run(p);
    if (placed) leave_core(&before);
}
