#include "memory.h"

#include <sys/mman.h>

void *map_memory(size_t num_bytes) {
    void *memory =
        mmap(NULL, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, num_bytes, MADV_HUGEPAGE); /* a wish: without it, it is only slower */
#endif
    return memory;
}

void unmap_memory(void *memory, size_t num_bytes) {
    if (memory != NULL) munmap(memory, num_bytes);
}
