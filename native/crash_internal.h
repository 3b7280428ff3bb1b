/* What the line about a crash says of a thread. */
#ifndef PV_CRASH_INTERNAL_H
#define PV_CRASH_INTERNAL_H

#include <signal.h>
#include <stddef.h>

#include "crash.h"

/* The calling thread's name, cut to 31 bytes. */
void pv_crash_name(const char *name);
/* What it works for from now on, by its name, which stays where it is until the next call; NULL or
 * "": nothing in particular. */
void pv_crash_device(const char *device);
/* How much memory an alternate signal stack needs. */
size_t pv_crash_stack_size(void);
/* All signals but those that must reach the report: a fault while its signal is blocked ends the
 * process without a word. */
void pv_crash_other_signals(sigset_t *set);

#endif
