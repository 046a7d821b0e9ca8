/* What a thread does between two looks at something that another changes. */
#ifndef SPLITFUSE_RELAX_H
#define SPLITFUSE_RELAX_H

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
