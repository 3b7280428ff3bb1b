#include "iothread/iothread.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "crash_internal.h"
#include "iothread/internal.h"
#include "thread_internal.h"

#define TURNS 8 /* of busy members, until what is complete is looked at */
#define NAME_BYTES 32

struct pv_iothread {
	int list;
	char name[NAME_BYTES];
	pthread_mutex_t control; /* held while the thread is started or ended */
	uint32_t attached;
	pv_engine_make *make; /* what made the engine */
	pv_engine_make *preferred;
	struct pv_engine *engine;
	struct pv_thread thread;
	atomic_int tid;       /* 0 while there is none */
	struct pv_watch wake; /* written when `changed` is set */
	atomic_bool changed;
	pthread_mutex_t lock; /* of what is below, and of every `gone` */
	pthread_cond_t left;  /* some member is gone */
	struct pv_member *joining;
	bool ending;
	/* The thread's own. */
	struct pv_member *members;
};

int pv_iothread_new(int list, const char *name, struct pv_iothread **out)
{
	struct pv_iothread *t = calloc(1, sizeof(*t));
	int result;

	*out = NULL;
	if (!t)
		return -ENOMEM;
	t->list = list;
	strncpy(t->name, name, sizeof(t->name) - 1);
	t->wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (t->wake.fd < 0) {
		result = -errno;
		free(t);
		return result;
	}
	pthread_mutex_init(&t->control, NULL);
	pthread_mutex_init(&t->lock, NULL);
	pv_cond_init(&t->left);
	*out = t;
	return 0;
}

void pv_iothread_free(struct pv_iothread *t)
{
	if (!t)
		return;
	close(t->wake.fd);
	pthread_cond_destroy(&t->left);
	pthread_mutex_destroy(&t->lock);
	pthread_mutex_destroy(&t->control);
	free(t);
}

int pv_iothread_tid(const struct pv_iothread *t)
{
	return atomic_load(&t->tid);
}

/* Take in who joins; false: the thread is to end. */
static bool look_around(struct pv_iothread *t)
{
	bool ending;

	if (!atomic_load(&t->changed))
		return true;
	pthread_mutex_lock(&t->lock);
	atomic_store(&t->changed, false);
	while (t->joining) {
		struct pv_member *member = t->joining;

		t->joining = member->next;
		member->next = t->members;
		t->members = member;
		for (uint32_t i = 0; i < member->watch_count; i++)
			if (member->watches[i].fd >= 0)
				pv_engine_watch(t->engine, &member->watches[i]);
	}
	ending = t->ending;
	pthread_mutex_unlock(&t->lock);
	return !ending;
}

static void dismiss(struct pv_iothread *t, struct pv_member **place)
{
	struct pv_member *member = *place;

	*place = member->next;
	pthread_mutex_lock(&t->lock);
	member->gone = true;
	pthread_cond_broadcast(&t->left);
	pthread_mutex_unlock(&t->lock);
}

/* False: some are watched still. */
static bool unwatch(struct pv_iothread *t, struct pv_member *member)
{
	while (member->watch_count > 0) {
		struct pv_watch *last = &member->watches[member->watch_count - 1];

		if (last->fd >= 0 && !t->engine->ops->unwatch(t->engine, last))
			return false;
		member->watch_count--;
	}
	return true;
}

/* Call each member once; how long to wait then. */
static uint64_t serve(struct pv_iothread *t)
{
	uint64_t limit = PV_FOREVER;
	struct pv_member **place = &t->members;

	while (*place) {
		struct pv_member *member = *place;
		uint64_t asked;

		pv_crash_device(member->device);
		asked = member->over ? PV_SERVE_END : member->ops->serve(member);
		member->over = asked == PV_SERVE_END;
		if (member->over && unwatch(t, member)) {
			dismiss(t, place);
			continue;
		}
		if (!member->over && asked < limit)
			limit = asked;
		place = &member->next;
	}
	return limit;
}

static void complete(struct pv_io *io)
{
	while (io) {
		struct pv_io *next = io->next;

		pv_crash_device(io->owner->device);
		io->owner->ops->complete(io->owner, io);
		io = next;
	}
}

static void *run(void *argument)
{
	struct pv_iothread *t = argument;
	unsigned busy = 0;

	if (t->engine->ops->begin)
		t->engine->ops->begin(t->engine);
	/* The list for an engine of plain calls follows the other's. */
	pv_thread_is(t->list + t->engine->ops->plain_calls, t->name, NULL);
	atomic_store(&t->tid, (int)syscall(SYS_gettid));
	pv_engine_watch(t->engine, &t->wake);
	while (look_around(t)) {
		uint64_t limit = serve(t);

		if (limit == 0 && ++busy < TURNS)
			continue;
		busy = 0;
		pv_crash_device(NULL);
		complete(t->engine->ops->wait(t->engine, limit));
	}
	atomic_store(&t->tid, 0);
	return NULL;
}

static void notify(struct pv_iothread *t)
{
	atomic_store(&t->changed, true);
	(void)eventfd_write(t->wake.fd, 1);
}

/* With `control` held. */
static int start(struct pv_iothread *t, pv_engine_make *make)
{
	int result = make(&t->engine);

	if (result < 0)
		return result;
	t->ending = false;
	result = pv_thread_run(&t->thread, run, t);
	if (result < 0)
		t->engine->ops->free(t->engine);
	else
		t->make = make;
	return result;
}

/* The same with any. */
static int start_any(struct pv_iothread *t)
{
	int result = -ENOSYS;

	if (t->preferred != pv_pool_new)
		result = start(t, pv_uring_new);
	if (result == -ENOSYS || result == -EPERM || result == -ENOMEM)
		result = start(t, pv_pool_new);
	return result;
}

void pv_iothread_prefer(struct pv_iothread *t, pv_engine_make *make)
{
	pthread_mutex_lock(&t->control);
	if (!t->preferred)
		t->preferred = make;
	pthread_mutex_unlock(&t->control);
}

int pv_iothread_attach(struct pv_iothread *t, pv_engine_make *make, struct pv_member *member)
{
	int result = 0;

	pthread_mutex_lock(&t->control);
	if (t->attached == 0)
		result = make ? start(t, make) : start_any(t);
	else if (make && t->make != make)
		result = -EINVAL;
	if (result == 0) {
		t->attached++;
		member->engine = t->engine;
		pthread_mutex_lock(&t->lock);
		member->next = t->joining;
		t->joining = member;
		pthread_mutex_unlock(&t->lock);
		notify(t);
	}
	pthread_mutex_unlock(&t->control);
	return result;
}

/* With `control` held. */
static void end(struct pv_iothread *t)
{
	pthread_mutex_lock(&t->lock);
	t->ending = true;
	pthread_mutex_unlock(&t->lock);
	notify(t);
	(void)pv_thread_wait(&t->thread, PV_FOREVER);
	t->engine->ops->free(t->engine);
}

int pv_iothread_detach(struct pv_iothread *t, struct pv_member *member, uint64_t deadline)
{
	bool gone;

	pthread_mutex_lock(&t->lock);
	while (!member->gone && pv_cond_wait(&t->left, &t->lock, deadline))
		;
	gone = member->gone;
	pthread_mutex_unlock(&t->lock);
	if (!gone)
		return -ETIMEDOUT;
	pthread_mutex_lock(&t->control);
	if (--t->attached == 0)
		end(t);
	pthread_mutex_unlock(&t->control);
	return 0;
}
