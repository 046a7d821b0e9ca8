#include "errors.h"

#include <stdarg.h>
#include <stdio.h>

#include "splitfuse_cpu.h"

static _Thread_local char last_error[256];

const char *sf_last_error(void) { return last_error; }

int fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return -1;
}
