#include "waiting.h"

void init_sleepers(sleepers *s) {
    atomic_init(&s->count, 0);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->woken, NULL);
}

void destroy_sleepers(sleepers *s) {
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->woken);
}

/* Who sleeps has counted itself before it looks for the last time; see wake_sleepers. */
void sleep_until(sleepers *s, const atomic_uint *value, unsigned wanted) {
    pthread_mutex_lock(&s->mutex);
    atomic_fetch_add(&s->count, 1);
    while (!has_reached(atomic_load(value), wanted)) pthread_cond_wait(&s->woken, &s->mutex);
    atomic_fetch_sub(&s->count, 1);
    pthread_mutex_unlock(&s->mutex);
}

void wake_sleepers(sleepers *s) {
    if (atomic_load(&s->count) == 0) return;
    pthread_mutex_lock(&s->mutex);
    pthread_cond_broadcast(&s->woken);
    pthread_mutex_unlock(&s->mutex);
}
