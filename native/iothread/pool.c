/* The engine of plain system calls: threads that take operations one by one.
 *
 * Operations are handed over in one go when the engine waits. At most one thread is being woken at
 * a time: it wakes the next one if there is work for it still, so that quick operations, as of
 * what the host has in memory, are done by few threads and slow ones by many. Reads that need not
 * wait are done by the engine's user itself. Threads are added while all of them are busy, up to a
 * limit, and live as long as the pool.
 *
 * Neither the user nor a thread at work may start one (sandbox/table.py). So there is always a spare
 * thread, which has not taken its list yet and sees nothing of any operation: once it is called it
 * starts the next one, and only then goes to work. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "crash_internal.h"
#include "iothread/io_internal.h"
#include "sandbox/filter.h"
#include "thread_internal.h"

#define THREADS 16
#define NS_PER_MS 1000000

struct list {
	struct pv_io *first; /* `last` is the end of the list, if there is one */
	struct pv_io *last;
};

struct pool {
	struct pv_engine engine;
	struct pv_watch done_watch; /* written when something is done and the user sleeps */
	/* The user's own. */
	int epoll_fd; /* of what is watched */
	bool tells;          /* something is watched that is to be told what it was ready for */
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
	/* Of the threads; the last one is the spare, as long as there are more to be had. */
	pthread_cond_t needed; /* the spare is */
	unsigned called;  /* so many are to work, */
	unsigned working; /* so many have come, */
	unsigned count;   /* and so many were started */
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

/* With the lock held. */
static int add_thread(struct pool *p)
{
	int result = pv_thread_start(&p->threads[p->count], run, p);

	p->count += result == 0;
	return result;
}

/* With the lock held: call one more for each operation that nobody is free for. */
static void grow(struct pool *p)
{
	unsigned wanted = 0;

	for (struct pv_io *io = p->to_do.first; io && wanted < THREADS; io = io->next)
		wanted++;
	wanted += p->working - p->idle;
	if (wanted <= p->called)
		return;
	p->called = wanted < THREADS ? wanted : THREADS;
	pthread_cond_signal(&p->needed);
}

/* Wait to be called, and start the next spare one; false: it is the end. There is one thread at work
 * at least, so one that cannot be had costs time only. */
static bool is_called(struct pool *p)
{
	bool called;

	pthread_mutex_lock(&p->lock);
	while (p->working >= p->called && !p->ending)
		pthread_cond_wait(&p->needed, &p->lock);
	called = !p->ending;
	p->working += called;
	if (called && p->count == p->working && p->count < THREADS)
		(void)add_thread(p);
	pthread_mutex_unlock(&p->lock);
	return called;
}

/* With the lock held: whether a thread is to be called, by `more`, once the lock is free. */
static bool needs_thread(struct pool *p)
{
	if (!p->to_do.first || p->waking || p->idle == 0)
		return false;
	return p->waking = true;
}

/* The next operation; NULL at the end. */
static struct pv_io *take(struct pool *p)
{
	struct pv_io *io;
	bool call;

	pthread_mutex_lock(&p->lock);
	while (!p->to_do.first && !p->ending) {
		p->idle++;
		pthread_cond_wait(&p->more, &p->lock);
		p->idle--;
		p->waking = false;
	}
	io = p->to_do.first;
	if (io)
		p->to_do.first = io->next;
	call = needs_thread(p);
	pthread_mutex_unlock(&p->lock);
	if (call)
		pthread_cond_signal(&p->more);
	return io;
}

static void finish(struct pool *p, struct pv_io *io)
{
	bool wake;

	pthread_mutex_lock(&p->lock);
	io->next = p->done;
	p->done = io;
	wake = p->sleeping;
	p->sleeping = false;
	pthread_mutex_unlock(&p->lock);
	if (wake)
		(void)eventfd_write(p->done_watch.fd, 1);
}

static void *run(void *argument)
{
	struct pool *p = argument;
	struct pv_io *io;

	pv_thread_is_spare();
	if (!is_called(p))
		return NULL;
	pv_thread_is(PV_SANDBOX_POOL, "pool", NULL);
	while ((io = take(p))) {
		pv_crash_device(io->device);
		io->result = pv_io_run(io);
		finish(p, io);
	}
	return NULL;
}

static int start(struct pv_engine *engine, struct pv_io *io)
{
	struct pool *p = (struct pool *)engine;
	struct list one = {io, io};

	if (io->kind == PV_IO_READ && io->cached) {
		io->result = pv_io_read_now(io);
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
	bool call;

	pthread_mutex_lock(&p->lock);
	append(&p->to_do, &p->started);
	grow(p);
	call = needs_thread(p);
	done = p->done;
	p->done = NULL;
	p->sleeping = sleep && !done;
	pthread_mutex_unlock(&p->lock);
	if (call)
		pthread_cond_signal(&p->more);
	return done;
}

/* Edge by edge, so that nothing need be read. */
static void arm(struct pool *p)
{
	p->tells = false;
	for (struct pv_watch *watch = p->engine.watches; watch; watch = watch->next) {
		struct epoll_event event = {
			.events = (watch->events ? (uint32_t)watch->events : EPOLLIN) |
			          (watch->once ? EPOLLONESHOT : EPOLLET),
			.data.ptr = watch,
		};
		int how = watch->added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

		p->tells |= watch->events != 0;
		if (watch->armed || watch->over || (watch->once && !watch->wanted))
			continue;
		watch->armed = epoll_ctl(p->epoll_fd, how, watch->fd, &event) == 0;
		watch->added |= watch->armed;
	}
}

static bool unwatch(struct pv_engine *engine, struct pv_watch *watch)
{
	struct pool *p = (struct pool *)engine;

	if (watch->added)
		(void)epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	pv_engine_forget(engine, watch);
	return true;
}

static void take_watch(const struct epoll_event *event)
{
	struct pv_watch *watch = event->data.ptr;

	watch->seen |= (short)event->events;
	watch->over = (event->events & (EPOLLERR | EPOLLHUP)) != 0;
	if (watch->once)
		watch->armed = watch->wanted = false;
}

/* Until something that is watched is ready, to the end of the time at most. */
static void look(struct pool *p, uint64_t timeout_ns)
{
	struct epoll_event events[16];
	uint64_t ms = timeout_ns / NS_PER_MS + (timeout_ns > 0);
	int count = epoll_wait(p->epoll_fd, events, sizeof(events) / sizeof(events[0]),
	                       timeout_ns == PV_FOREVER ? -1 : (int)(ms < INT_MAX ? ms : INT_MAX));

	for (int i = 0; i < count; i++)
		take_watch(&events[i]);
}

static struct pv_io *wait(struct pv_engine *engine, uint64_t timeout_ns)
{
	struct pool *p = (struct pool *)engine;
	struct pv_io *done;

	arm(p);
	done = exchange(p, !p->ready && timeout_ns > 0);
	if (!done && !p->ready && timeout_ns > 0) {
		look(p, timeout_ns);
		done = exchange(p, false);
	} else if (p->tells) {
		look(p, 0);
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
	pthread_cond_broadcast(&p->needed);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->count; i++)
		pthread_join(p->threads[i], NULL);
	close(p->done_watch.fd);
	close(p->epoll_fd);
	pthread_cond_destroy(&p->needed);
	pthread_cond_destroy(&p->more);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static const struct pv_engine_ops OPS = {
	.plain_calls = true,
	.start = start,
	.wait = wait,
	.unwatch = unwatch,
	.free = pool_free,
};

/* What it sleeps on, its first thread, which is called at once, and the spare. */
static int set_up(struct pool *p)
{
	int result;

	p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (p->epoll_fd < 0)
		return -errno;
	p->done_watch.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->done_watch.fd < 0)
		return -errno;
	pv_engine_watch(&p->engine, &p->done_watch);
	p->called = 1;
	pthread_mutex_lock(&p->lock);
	result = add_thread(p);
	if (result == 0)
		(void)add_thread(p);
	pthread_mutex_unlock(&p->lock);
	return result;
}

int pv_pool_new(struct pv_engine **out)
{
	struct pool *p = calloc(1, sizeof(*p));
	int result;

	*out = NULL;
	if (!p)
		return -ENOMEM;
	p->engine.ops = &OPS;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->more, NULL);
	pthread_cond_init(&p->needed, NULL);
	p->epoll_fd = p->done_watch.fd = -1;
	result = set_up(p);
	if (result < 0) {
		pool_free(&p->engine);
		return result;
	}
	*out = &p->engine;
	return 0;
}
