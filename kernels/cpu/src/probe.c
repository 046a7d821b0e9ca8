/* Which instruction sets this CPU and its system can run. Compiled by itself, for any CPU. */
#include <stdint.h>

/* 0: generic, 1: avx2, 2: avx512, 3: avx512_bf16; each runs those before it. The compiler's own
 * probe also asks the system, which must save the wide registers. */
int32_t sf_probe(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
        return 0;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512cd") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl")) {
        return 1;
    }
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
#else
    return 0;
#endif
}
