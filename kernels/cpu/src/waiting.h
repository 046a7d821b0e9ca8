/* How a thread waits for a number that another one raises: it looks for a while, then sleeps. */
#ifndef SPLITFUSE_WAITING_H
#define SPLITFUSE_WAITING_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Threads that sleep until numbers of theirs are reached. */
typedef struct {
    atomic_int count;
    pthread_mutex_t mutex;
    pthread_cond_t woken;
} sleepers;

void init_sleepers(sleepers *s);

/* Nobody sleeps any more. */
void destroy_sleepers(sleepers *s);

/* Whether a number is `wanted` or less than 2^31 beyond; it may wrap around. */
static inline bool has_reached(unsigned value, unsigned wanted) {
    return (int32_t)(value - wanted) >= 0;
}

/* Until `value` has reached `wanted`. */
void sleep_until(sleepers *s, const atomic_uint *value, unsigned wanted);

/* After a number was raised, by a sequentially consistent operation. */
void wake_sleepers(sleepers *s);

/* Between two looks. */
static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
