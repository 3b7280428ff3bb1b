/* The engine of plain system calls: threads that take operations one by one.
 *
 * Threads are added while all of them are busy, up to a limit, and live as long as the pool. */
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

struct pool {
	struct pv_engine engine;
	int fd;
	int kick_fd;
	int done_fd; /* written when `done` is no longer empty */
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct pv_io *first; /* to do; `last` is the end of the list, if there is one */
	struct pv_io *last;
	struct pv_io *done;
	bool ending;
	unsigned waiting; /* operations to do */
	unsigned idle;    /* threads that wait for one */
	unsigned count;
	pthread_t threads[THREADS];
};

/* The next operation; NULL at the end. With the lock held. */
static struct pv_io *take(struct pool *p)
{
	struct pv_io *io;

	p->idle++;
	while (!p->first && !p->ending)
		pthread_cond_wait(&p->more, &p->lock);
	p->idle--;
	io = p->first;
	if (io) {
		p->first = io->next;
		p->waiting--;
	}
	return io;
}

static void *run(void *argument)
{
	struct pool *p = argument;
	struct pv_io *io;

	pthread_mutex_lock(&p->lock);
	while ((io = take(p))) {
		pthread_mutex_unlock(&p->lock);
		io->result = pv_io_run(p->fd, io);
		pthread_mutex_lock(&p->lock);
		io->next = p->done;
		p->done = io;
		if (!io->next)
			(void)eventfd_write(p->done_fd, 1);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

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

static int start(struct pv_engine *engine, struct pv_io *io)
{
	struct pool *p = (struct pool *)engine;

	io->next = NULL;
	pthread_mutex_lock(&p->lock);
	if (p->first)
		p->last->next = io;
	else
		p->first = io;
	p->last = io;
	p->waiting++;
	/* There is one thread at least, so one that cannot be had costs time only. */
	if (p->waiting > p->idle && p->count < THREADS)
		(void)add_thread(p);
	pthread_cond_signal(&p->more);
	pthread_mutex_unlock(&p->lock);
	return 0;
}

static struct pv_io *take_done(struct pool *p)
{
	struct pv_io *done;

	pthread_mutex_lock(&p->lock);
	done = p->done;
	p->done = NULL;
	pthread_mutex_unlock(&p->lock);
	return done;
}

static struct pv_io *wait(struct pv_engine *engine, uint64_t timeout_ns)
{
	struct pool *p = (struct pool *)engine;
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
	return take_done(p);
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
