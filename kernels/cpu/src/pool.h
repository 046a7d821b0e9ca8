/* A fixed set of threads that run one function together.
 *
 * The caller begins at once, and the others when they wake up; who wakes up too late is not waited
 * for. So the function shares work out as it goes: what a thread has not taken, another does.
 *
 * Whoever waits for the others, to begin or to end, looks `num_looks` times, some microseconds, then
 * sleeps: on cores that others use, too, a thread that is waited for may have been interrupted, and
 * one that looks on for it keeps others from ending sooner.
 */
#ifndef SPLITFUSE_POOL_H
#define SPLITFUSE_POOL_H

typedef struct pool pool;

/* What each thread runs; thread 0 is the caller of pool_run. */
typedef void pool_task(void *context, int thread);

/* NULL if the system gives no more threads. */
pool *pool_create(int num_threads, int num_looks);

void pool_destroy(pool *p);

int pool_num_threads(const pool *p);

/* Run the task in the caller and in those of the others that come before it has returned here;
 * returns when all who came have returned. Not reentrant. */
void pool_run(pool *p, pool_task *task, void *context);

#endif
