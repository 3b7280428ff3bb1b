/* Time, as one number. */
#ifndef PYVIRT_AGENT_CLOCK_H
#define PYVIRT_AGENT_CLOCK_H

#include <poll.h>
#include <stdint.h>
#include <time.h>

/* Microseconds of CLOCK_MONOTONIC. */
static inline int64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static inline void nap(int ms)
{
    poll(NULL, 0, ms);
}

#endif
