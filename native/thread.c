#include "thread_internal.h"

#include <alloca.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "crash_internal.h"
#include "sandbox/filter.h"

#define STACK (128 * 1024)
#define COMM_BYTES 16 /* of a name that the kernel keeps */
#define NS_PER_S UINT64_C(1000000000)

enum { GO_ON, END, ENDS };

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

static void take_name(const char *what, const char *device)
{
	char comm[COMM_BYTES];

	pv_crash_name(what);
	pv_crash_device(device);
	(void)snprintf(comm, sizeof(comm), "%s%s%s", what, device && device[0] ? " " : "",
	               device ? device : "");
	(void)pthread_setname_np(pthread_self(), comm);
}

void pv_thread_is(int list, const char *what, const char *device)
{
	take_name(what, device);
	if (pv_sandbox_enter(list) < 0)
		abort();
}

void pv_thread_is_spare(void)
{
	take_name("spare", NULL);
	if (pv_sandbox_enter_control() < 0)
		abort();
}

struct start {
	void *(*run)(void *);
	void *argument;
};

/* Run with a stack for faults at the far end of the thread's own, which an overflow leaves alone. */
static void *run_guarded(void *argument)
{
	struct start start = *(struct start *)argument;
	stack_t stack = {.ss_size = pv_crash_stack_size()}, before;
	void *result;

	free(argument);
	stack.ss_sp = alloca(stack.ss_size);
	if (sigaltstack(&stack, &before))
		return start.run(start.argument);
	result = start.run(start.argument);
	/* A sanitizer's, which it takes away again. Else the thread keeps this one to its end. */
	if (!(before.ss_flags & SS_DISABLE))
		(void)sigaltstack(&before, NULL);
	return result;
}

int pv_thread_start(pthread_t *thread, void *(*run)(void *), void *argument)
{
	struct start *start = malloc(sizeof(*start));
	pthread_attr_t attributes;
	sigset_t others, before;
	int error = start ? pthread_attr_init(&attributes) : ENOMEM;

	if (error) {
		free(start);
		return -error;
	}
	*start = (struct start){run, argument};
	pthread_attr_setstacksize(&attributes, STACK);
	pv_crash_other_signals(&others);
	pthread_sigmask(SIG_SETMASK, &others, &before);
	error = pthread_create(thread, &attributes, run_guarded, start);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error)
		free(start);
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
	atomic_store(&thread->order, GO_ON);
	thread->run = run;
	thread->argument = argument;
	result = pv_thread_start(&thread->handle, run_and_tell, thread);
	if (result < 0)
		destroy(thread);
	return result;
}

void pv_thread_stand_in(struct pv_thread *thread)
{
	atomic_store(&thread->order, GO_ON);
}

void pv_thread_ask(struct pv_thread *thread)
{
	int before = GO_ON;

	(void)atomic_compare_exchange_strong(&thread->order, &before, END);
}

bool pv_thread_is_to_end(struct pv_thread *thread)
{
	int before = END;

	return atomic_compare_exchange_strong(&thread->order, &before, ENDS) || before == ENDS;
}

bool pv_thread_spare(struct pv_thread *thread)
{
	int before = END;

	return atomic_compare_exchange_strong(&thread->order, &before, GO_ON) || before == GO_ON;
}

int pv_thread_pause(struct pv_thread *thread, int wake_fd, uint64_t timeout_ns)
{
	pv_thread_ask(thread);
	(void)eventfd_write(wake_fd, 1);
	if (pv_thread_wait(thread, pv_deadline(timeout_ns)) == 0)
		return 0;
	return pv_thread_spare(thread) ? -ETIMEDOUT : pv_thread_wait(thread, PV_FOREVER);
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
