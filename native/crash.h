/* A line about what a thread died of, on the way down: SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT,
 * and SIGSYS, by which a sandbox ends it (sandbox/filter.h).
 *
 * The default action follows, so that core dumps and exit statuses are what they would be without.
 * The process has one such report. */
#ifndef PV_CRASH_H
#define PV_CRASH_H

#include <stdint.h>

/* Write the lines to `fd`, borrowed for good, from now on. -errno as of sigaction(2). Threads that
 * are not from pv_thread_start have to call pv_crash_thread. */
int pv_crash_report(int fd);
/* Give the calling thread a name for its line, cut to 31 bytes, and a stack of its own for that, as
 * the fault may be that it has no more; both until it ends. -ENOMEM, -EAGAIN. */
int pv_crash_thread(const char *name);
/* Guest memory is here, `size` bytes at `base`, as a line about an address in it says; 0: none. */
void pv_crash_memory(const void *base, uint64_t size);
/* A terminal's mode of this moment is to be there again; -1: no more. */
void pv_crash_terminal(int fd);

#endif
