/* Signals as a file descriptor, so that no handler ever runs in the middle of something. */
#ifndef PV_SIGNALS_H
#define PV_SIGNALS_H

/* Block SIGTERM, SIGINT and SIGHUP in the calling thread (and in those it starts later) and return
 * a non-blocking signalfd for them, which the caller owns; or -errno. SIGPIPE is ignored. */
int pv_signals_open(void);

#endif
