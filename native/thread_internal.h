/* How the threads are started that are ours alone. */
#ifndef PV_THREAD_INTERNAL_H
#define PV_THREAD_INTERNAL_H

#include <pthread.h>

/* Start one with every signal blocked, for these are the main thread's, and with a stack so small
 * that the kernel does not put a huge page there. -EAGAIN, -ENOMEM. */
int pv_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);

#endif
