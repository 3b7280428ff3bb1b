/* The engine of plain system calls: threads that take operations one by one.
 *
 * Operations are handed over in one go when the engine waits. At most one thread is being woken at
 * a time: it wakes the next one if there is work for it still, so that quick operations, as of
 * what the host has in memory, are done by few threads and slow ones by many. Reads that need not
 * wait are done by the engine's user itself. Threads are added while all of them are busy, up to a
 * limit, and live as long as the pool. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "io_internal.h"

#define THREADS 16
#define STACK (64 * 1024)
#define NS_PER_S 1000000000

struct list {
	struct pv_io *first; /* `last` is the end of the list, if there is one */
	struct pv_io *last;
};

struct pool {
	struct pv_engine engine;
	int fd;
	int kick_fd;
	int done_fd; /* written when something is done and the user sleeps */
	/* The user's own. */
	struct list started; /* to be handed over */
	struct pv_io *ready; /* done at once */
	/* Everybody's. */
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct list to_do;
	struct pv_io *done;
	bool sleeping; /* the user, until something is done */
	bool waking;   /* a thread has been called and has not come yet */
	bool ending;
	unsigned idle; /* threads that wait for an operation */
	unsigned count;
	pthread_t threads[THREADS];
};

/* Put `more` at the end of `list`, and leave it empty. */
static void append(struct list *list, struct list *more)
{
	if (!more->first)
		return;
	if (list->first)
		list->last->next = more->first;
	else
		list->first = more->first;
	list->last = more->last;
	more->first = NULL;
}

static void *run(void *argument);

/* With the lock held. Signals are for the main thread. */
static int add_thread(struct pool *p)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int result;

	sigfillset(&all);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	result = pthread_create(&p->threads[p->count], &attributes, run, p);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (result == 0)
		p->count++;
	return -result;
}

/* With the lock held: get a thread for what is to be done, unless one is on its way. */
static void call_thread(struct pool *p)
{
	if (!p->to_do.first || p->waking)
		return;
	if (p->idle > 0) {
		pthread_cond_signal(&p->more);
		p->waking = true;
	} else if (p->count < THREADS) {
		/* There is one thread at least, so one that cannot be had costs time only. */
		p->waking = add_thread(p) == 0;
	}
}

/* The next operation; NULL at the end. With the lock held. */
static struct pv_io *take(struct pool *p)
{
	struct pv_io *io;

	while (!p->to_do.first && !p->ending) {
		p->idle++;
		pthread_cond_wait(&p->more, &p->lock);
		p->idle--;
		p->waking = false;
	}
	io = p->to_do.first;
	if (io)
		p->to_do.first = io->next;
	call_thread(p);
	return io;
}

/* With the lock held. */
static void finish(struct pool *p, struct pv_io *io)
{
	io->next = p->done;
	p->done = io;
	if (p->sleeping)
		(void)eventfd_write(p->done_fd, 1);
	p->sleeping = false;
}

static void *run(void *argument)
{
	struct pool *p = argument;
	struct pv_io *io;

	pthread_mutex_lock(&p->lock);
	p->waking = false;
	while ((io = take(p))) {
		pthread_mutex_unlock(&p->lock);
		io->result = pv_io_run(p->fd, io);
		pthread_mutex_lock(&p->lock);
		finish(p, io);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static int start(struct pv_engine *engine, struct pv_io *io)
{
	struct pool *p = (struct pool *)engine;
	struct list one = {io, io};

	if (io->kind == PV_IO_READ && io->cached) {
		io->result = pv_io_read_now(p->fd, io);
		if (io->result != -EAGAIN) {
			io->next = p->ready;
			p->ready = io;
			return 0;
		}
	}
	io->next = NULL;
	append(&p->started, &one);
	return 0;
}

/* Hand over what was started and return what is done, before the user sleeps or after. */
static struct pv_io *exchange(struct pool *p, bool sleep)
{
	struct pv_io *done;

	pthread_mutex_lock(&p->lock);
	append(&p->to_do, &p->started);
	call_thread(p);
	done = p->done;
	p->done = NULL;
	p->sleeping = sleep && !done;
	pthread_mutex_unlock(&p->lock);
	return done;
}

static void sleep_until(struct pool *p, uint64_t timeout_ns)
{
	struct pollfd fds[] = {
		{.fd = p->done_fd, .events = POLLIN},
		{.fd = p->kick_fd, .events = POLLIN},
	};
	struct timespec limit = {
		.tv_sec = (time_t)(timeout_ns / NS_PER_S),
		.tv_nsec = (long)(timeout_ns % NS_PER_S),
	};
	eventfd_t value;

	if (ppoll(fds, 2, timeout_ns == PV_IO_FOREVER ? NULL : &limit, NULL) > 0)
		for (unsigned i = 0; i < 2; i++)
			if (fds[i].revents & POLLIN)
				(void)eventfd_read(fds[i].fd, &value);
}

static struct pv_io *wait(struct pv_engine *engine, uint64_t timeout_ns)
{
	struct pool *p = (struct pool *)engine;
	struct pv_io *done = exchange(p, !p->ready);

	if (!done && !p->ready) {
		sleep_until(p, timeout_ns);
		done = exchange(p, false);
	}
	while (p->ready) {
		struct pv_io *io = p->ready;

		p->ready = io->next;
		io->next = done;
		done = io;
	}
	return done;
}

static void pool_free(struct pv_engine *engine)
{
	struct pool *p = (struct pool *)engine;

	pthread_mutex_lock(&p->lock);
	p->ending = true;
	pthread_cond_broadcast(&p->more);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->count; i++)
		pthread_join(p->threads[i], NULL);
	close(p->done_fd);
	pthread_cond_destroy(&p->more);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static const struct pv_engine_ops OPS = {.start = start, .wait = wait, .free = pool_free};

int pv_pool_new(int fd, int kick_fd, struct pv_engine **out)
{
	struct pool *p = calloc(1, sizeof(*p));
	int result;

	*out = NULL;
	if (!p)
		return -ENOMEM;
	p->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->done_fd < 0) {
		result = -errno;
		free(p);
		return result;
	}
	p->engine.ops = &OPS;
	p->fd = fd;
	p->kick_fd = kick_fd;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->more, NULL);
	pthread_mutex_lock(&p->lock);
	result = add_thread(p);
	pthread_mutex_unlock(&p->lock);
	if (result < 0) {
		pool_free(&p->engine);
		return result;
	}
	*out = &p->engine;
	return 0;
}
