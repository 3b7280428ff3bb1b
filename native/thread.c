#include "thread_internal.h"

#include <errno.h>
#include <signal.h>
#include <time.h>

#define STACK (128 * 1024)
#define NS_PER_S UINT64_C(1000000000)

uint64_t pv_now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

uint64_t pv_deadline(uint64_t timeout_ns)
{
	uint64_t now = pv_now_ns();

	return timeout_ns < PV_FOREVER - now ? now + timeout_ns : PV_FOREVER;
}

void pv_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attributes);
	pthread_condattr_destroy(&attributes);
}

bool pv_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline)
{
	const struct timespec until = {
		.tv_sec = (time_t)(deadline / NS_PER_S),
		.tv_nsec = (long)(deadline % NS_PER_S),
	};

	if (deadline == PV_FOREVER)
		return pthread_cond_wait(cond, lock) == 0;
	return pthread_cond_timedwait(cond, lock, &until) != ETIMEDOUT;
}

int pv_thread_start(pthread_t *thread, void *(*run)(void *), void *argument)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error = pthread_attr_init(&attributes);

	if (error)
		return -error;
	pthread_attr_setstacksize(&attributes, STACK);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(thread, &attributes, run, argument);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return -error;
}

static void *run_and_tell(void *argument)
{
	struct pv_thread *thread = argument;
	void *result = thread->run(thread->argument);

	pthread_mutex_lock(&thread->lock);
	thread->has_ended = true;
	pthread_cond_signal(&thread->end);
	pthread_mutex_unlock(&thread->lock);
	return result;
}

static void destroy(struct pv_thread *thread)
{
	pthread_cond_destroy(&thread->end);
	pthread_mutex_destroy(&thread->lock);
}

int pv_thread_run(struct pv_thread *thread, void *(*run)(void *), void *argument)
{
	int result;

	pthread_mutex_init(&thread->lock, NULL);
	pv_cond_init(&thread->end);
	thread->has_ended = false;
	thread->run = run;
	thread->argument = argument;
	result = pv_thread_start(&thread->handle, run_and_tell, thread);
	if (result < 0)
		destroy(thread);
	return result;
}

int pv_thread_wait(struct pv_thread *thread, uint64_t deadline)
{
	bool has_ended;

	pthread_mutex_lock(&thread->lock);
	while (!thread->has_ended && pv_cond_wait(&thread->end, &thread->lock, deadline))
		;
	has_ended = thread->has_ended;
	pthread_mutex_unlock(&thread->lock);
	if (!has_ended)
		return -ETIMEDOUT;
	pthread_join(thread->handle, NULL);
	destroy(thread);
	return 0;
}
