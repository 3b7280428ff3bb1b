/* The thread of a pair of queues, if that has its own, and what it waits for by epoll(7). Eventfds tell
 * of edges, so that none has to be read; the port tells how it is, while somebody waits for it. */
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "net/internal.h"
#include "sandbox/filter.h"
#include "virtio/irq.h"

#define LOOK_MS 1000
#define NS_PER_MS 1000000

/* In the order in which they are of no use any more: without a port, on a broken device. */
enum { ON_PORT, ON_RX, ON_TX, ON_CTRL, ON_ERROR, ON_WAKE, PLACES };

static int source(const struct pv_net_worker *w, uint32_t place)
{
	const struct pv_net *net = w->net;
	bool away = pv_net_is_away(net);

	switch (place) {
	case ON_PORT:
		return w->port->ops ? w->port->fd : -1;
	case ON_RX:
		return away ? -1 : w->rx.queue.kick_fd;
	case ON_TX:
		return away ? -1 : w->tx.queue.kick_fd;
	case ON_CTRL:
		return w->index == 0 && net->ctrl.ring ? net->ctrl.kick_fd : -1;
	case ON_ERROR:
		return net->vhost ? net->vhost_error_fd : -1;
	default:
		return w->wake_fd;
	}
}

static int control(const struct pv_net_worker *w, int how, uint32_t place, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u32 = place};
	int fd = source(w, place);

	return fd >= 0 && epoll_ctl(w->epoll_fd, how, fd, &event) < 0 ? -errno : 0;
}

static int watch_all(struct pv_net_worker *w)
{
	int result = 0;

	w->unwatched = w->asked = 0;
	for (uint32_t place = 0; place < PLACES && result == 0; place++)
		result = control(w, EPOLL_CTL_ADD, place, place == ON_PORT ? 0 : EPOLLIN | EPOLLET);
	return result;
}

/* Watch none of the first `count` any more. */
static void unwatch(struct pv_net_worker *w, uint32_t count)
{
	for (; w->unwatched < count; w->unwatched++)
		(void)control(w, EPOLL_CTL_DEL, w->unwatched, 0);
}

static bool has_port(const struct pv_net_worker *w)
{
	return w->unwatched <= ON_PORT && w->port->ops;
}

static void ask_port(struct pv_net_worker *w, uint32_t events)
{
	w->asked = events;
	(void)control(w, EPOLL_CTL_MOD, ON_PORT, events);
}

/* That it tells of packets for which nobody waits is let pass until there are some, for most often the
 * driver is the faster one. */
static void ask(struct pv_net_worker *w)
{
	uint32_t events = w->asked & EPOLLIN;

	if (w->rx.wait == PV_WAIT_PORT)
		events |= EPOLLIN;
	if (w->tx.wait == PV_WAIT_PORT || w->flushing)
		events |= EPOLLOUT;
	if (events != w->asked)
		ask_port(w, events);
}

/* A tap that is removed wakes only those who wait for packets. */
static bool looks_at_port(const struct pv_net_worker *w)
{
	return has_port(w) && !(w->asked & EPOLLIN);
}

static int timeout(const struct pv_net_worker *w)
{
	uint64_t delay = pv_net_delay(w);
	uint64_t ms = delay == UINT64_MAX ? delay : (delay + NS_PER_MS - 1) / NS_PER_MS;

	if (looks_at_port(w) && ms > LOOK_MS)
		return LOOK_MS;
	return ms == UINT64_MAX ? -1 : ms > INT_MAX ? INT_MAX : (int)ms;
}

static void take(struct pv_net_worker *w, uint32_t place, uint32_t events)
{
	switch (place) {
	case ON_PORT:
		if (events & EPOLLIN && w->rx.wait != PV_WAIT_PORT)
			ask_port(w, w->asked & ~(uint32_t)EPOLLIN);
		pv_net_look_at_port(w, (short)events);
		break;
	case ON_ERROR:
		pv_net_break(w->net, "vhost-net found a ring whose rules are broken");
		break;
	case ON_WAKE:
		break;
	default:
		pv_net_count(w, PV_KICKS, 1);
	}
}

/* A broken device waits for its end alone. */
static void wait(struct pv_net_worker *w)
{
	struct epoll_event events[PLACES];
	bool broken = atomic_load(&w->net->broken);
	int count;

	if (broken || w->lost)
		unwatch(w, broken ? ON_WAKE : ON_PORT + 1);
	if (has_port(w))
		ask(w);
	count = epoll_wait(w->epoll_fd, events, PLACES, broken ? -1 : timeout(w));
	if (count == 0 && looks_at_port(w))
		ask_port(w, w->asked); /* which looks how it is */
	for (int i = 0; i < count; i++)
		take(w, events[i].data.u32, events[i].events);
}

static void *run(void *worker)
{
	struct pv_net_worker *w = worker;
	const struct sched_param none = {0};
	bool has_polled = false;

	/* Does not cut in on a busy sender, whose packets then come in bursts. */
	(void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
	pv_thread_is(PV_SANDBOX_NET, "net", pv_virtio_irq_name(w->net->irq));
	while (!pv_thread_is_to_end(&w->thread)) {
		has_polled = atomic_load(&w->net->broken) || !pv_net_pass(w, has_polled);
		if (has_polled)
			wait(w);
	}
	/* Here, for the kernel may take its time. */
	if (w->index == 0)
		pv_net_vhost_stop(w->net);
	return NULL;
}

int pv_net_run(struct pv_net_worker *w)
{
	int result;

	w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (w->epoll_fd < 0)
		return -errno;
	result = watch_all(w);
	if (result == 0)
		result = pv_thread_run(&w->thread, run, w);
	if (result < 0)
		close(w->epoll_fd);
	return result;
}

int pv_net_end(struct pv_net_worker *w, uint64_t deadline)
{
	int result = pv_thread_wait(&w->thread, deadline);

	if (result == 0)
		close(w->epoll_fd);
	return result;
}
