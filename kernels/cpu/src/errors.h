/* The text of the last error, by thread: errors are rare, and callers want a sentence. */
#ifndef SPLITFUSE_ERRORS_H
#define SPLITFUSE_ERRORS_H

/* Keep the text and return -1. */
__attribute__((format(printf, 1, 2))) int fail(const char *format, ...);

#endif
