/* How the threads are started that are ours alone, and how long somebody waits for their end. */
#ifndef PV_THREAD_INTERNAL_H
#define PV_THREAD_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PV_FOREVER UINT64_MAX /* as a time and as a span of time, both in nanoseconds */

/* Start one with every signal blocked but those of faults (crash.h), for the others are the main
 * thread's, and with a stack so small that the kernel does not put a huge page there. -EAGAIN,
 * -ENOMEM. */
int pv_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);
/* Let the calling thread, which is one of these, be known by what it does and the name of the
 * device that it does it for, as pv_crash_device says; and let it have its list, of enum
 * pv_sandbox_list, by which it may not even be named any more. A thread that cannot have that aborts
 * the process. */
void pv_thread_is(int list, const char *what, const char *device);
/* The same for one that waits to be needed, and only then says what it is: until then it has the list
 * of Python's threads, which may start others, and is to look at nothing of a guest's. */
void pv_thread_is_spare(void);

/* A thread whose end can be waited for with a limit, as pthread_join(3) cannot by a clock that
 * nobody sets. */
struct pv_thread {
	pthread_t handle;
	pthread_mutex_t lock;
	pthread_cond_t end;
	bool has_ended;
	atomic_int order; /* enum in thread.c */
	void *(*run)(void *argument);
	void *argument;
};

/* As pv_thread_start. */
int pv_thread_run(struct pv_thread *thread, void *(*run)(void *), void *argument);

/* In place of pv_thread_run, for what is done on a thread of others: it is asked as one, too. */
void pv_thread_stand_in(struct pv_thread *thread);

/* Ask it to end, as it finds when it calls pv_thread_is_to_end; the caller then wakes it. Any thread,
 * from pv_thread_run until pv_thread_wait has returned 0. */
void pv_thread_ask(struct pv_thread *thread);
/* For the thread itself, in each turn: whether it was asked to end. If so it is to, at once. */
bool pv_thread_is_to_end(struct pv_thread *thread);
/* Take pv_thread_ask back. False: too late, the thread ends. */
bool pv_thread_spare(struct pv_thread *thread);

/* Ask, wake by the eventfd, and wait for the end; -ETIMEDOUT: it goes on as if nobody had asked. */
int pv_thread_pause(struct pv_thread *thread, int wake_fd, uint64_t timeout_ns);

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
