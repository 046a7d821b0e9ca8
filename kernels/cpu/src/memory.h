/* Zeroed memory from the system, in large pages where it has them; pages are taken when first written. */
#ifndef SPLITFUSE_MEMORY_H
#define SPLITFUSE_MEMORY_H

#include <stddef.h>

/* NULL if there is none. */
void *map_memory(size_t num_bytes);

/* Take the pages that hold these bytes now, as if they were written, which they are not: other
 * threads may use them meanwhile. Returns 0, or -1 where the system cannot. */
int populate_memory(void *memory, size_t num_bytes);

/* `memory` from map_memory with the same size, or NULL. */
void unmap_memory(void *memory, size_t num_bytes);

#endif
