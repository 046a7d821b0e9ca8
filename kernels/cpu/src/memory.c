#include "memory.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

void *map_memory(size_t num_bytes) {
    void *memory =
        mmap(NULL, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, num_bytes, MADV_HUGEPAGE); /* a wish: without it, it is only slower */
#endif
    return memory;
}

int populate_memory(void *memory, size_t num_bytes) {
#ifdef MADV_POPULATE_WRITE
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)memory / page * page;
    return madvise((void *)begin, (uintptr_t)memory + num_bytes - begin, MADV_POPULATE_WRITE);
#else
    (void)memory, (void)num_bytes;
    return -1;
#endif
}

void unmap_memory(void *memory, size_t num_bytes) {
    if (memory != NULL) munmap(memory, num_bytes);
}
