/* How the threads are started that are ours alone, and how long somebody waits for their end. */
#ifndef PV_THREAD_INTERNAL_H
#define PV_THREAD_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define PV_FOREVER UINT64_MAX /* as a time and as a span of time, both in nanoseconds */

/* Start one with every signal blocked but those of faults (crash.h), for the others are the main
 * thread's, and with a stack so small that the kernel does not put a huge page there. -EAGAIN,
 * -ENOMEM. */
int pv_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);
/* Let the calling thread, which is one of these, be known by what it does and the name of the
 * device that it does it for, as pv_crash_device says. */
void pv_thread_is(const char *what, const char *device);

/* A thread whose end can be waited for with a limit, as pthread_join(3) cannot by a clock that
 * nobody sets. */
struct pv_thread {
	pthread_t handle;
	pthread_mutex_t lock;
	pthread_cond_t end;
	bool has_ended;
	void *(*run)(void *argument);
	void *argument;
};

/* As pv_thread_start. */
int pv_thread_run(struct pv_thread *thread, void *(*run)(void *), void *argument);

/* Wait until it has ended, to `deadline` at most; -ETIMEDOUT: it goes on, and `thread` is to stay.
 * After a 0 it is gone. One caller at a time. */
int pv_thread_wait(struct pv_thread *thread, uint64_t deadline);

/* Of CLOCK_MONOTONIC. */
uint64_t pv_now_ns(void);

/* So long from now. */
uint64_t pv_deadline(uint64_t timeout_ns);

/* pthread_cond_init(3) for pv_cond_wait. */
void pv_cond_init(pthread_cond_t *cond);

/* pthread_cond_wait(3) until `deadline` at most; false: that has come. */
bool pv_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline);

#endif
