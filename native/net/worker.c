/* What the thread of a pair of queues does in a turn. */
#include <errno.h>
#include <poll.h>

#include "net/internal.h"
#include "virtio/irq.h"

#define COMMANDS 16 /* in a row, at most */

static void copy_mode(struct pv_net_worker *w)
{
	struct pv_net *net = w->net;

	if (atomic_load(&net->mode_version) == w->mode_version)
		return;
	pthread_mutex_lock(&net->lock);
	w->mode = net->mode;
	w->mode_version = atomic_load(&net->mode_version);
	pthread_mutex_unlock(&net->lock);
}

/* Show the driver what was done on both queues, with one interrupt at most. */
static void publish(struct pv_net_worker *w)
{
	bool wanted;

	if (!w->pushed)
		return;
	w->pushed = false;
	pv_virtqueue_publish(w->rx.queue.ring);
	pv_virtqueue_publish(w->tx.queue.ring);
	wanted = pv_virtqueue_needs_notify(w->rx.queue.ring) != 0;
	wanted |= pv_virtqueue_needs_notify(w->tx.queue.ring) != 0;
	pv_net_count(w, wanted ? PV_INTERRUPTS : PV_SUPPRESSED, 1);
	if (wanted)
		pv_virtio_irq_used(w->net->irq);
}

static void flush(struct pv_net_worker *w)
{
	int result = 0;

	if (w->port->ops && !w->lost && w->port->ops->flush)
		result = w->port->ops->flush(w->port);
	if (result == -EPIPE)
		pv_net_lose(w);
	w->flushing = result == -EAGAIN;
}

/* A direction that waits for the host is not looked at before the host has moved. Who does not ask
 * poll(2), because the other one has more to do, looks every time. */
static void serve_pair(struct pv_net_worker *w, bool has_polled)
{
	copy_mode(w);
	if (!has_polled && w->rx.wait == PV_WAIT_PORT)
		w->rx.wait = PV_WAIT_NONE;
	if (!has_polled && w->tx.wait == PV_WAIT_PORT)
		w->tx.wait = PV_WAIT_NONE;
	if (w->rx.wait != PV_WAIT_PORT)
		pv_net_receive(w);
	if (w->tx.wait != PV_WAIT_PORT)
		pv_net_send(w);
	flush(w);
	publish(w);
}

/* True: there may be more. */
static bool serve_ctrl(struct pv_net_worker *w)
{
	struct pv_virtqueue *ring = w->net->ctrl.ring;
	bool more = true;

	pv_virtqueue_disable_kicks(ring);
	for (uint32_t i = 0; i < COMMANDS && more; i++) {
		int result = pv_virtqueue_pop(ring, &w->chain);

		if (result == 0) {
			more = pv_virtqueue_enable_kicks(ring) != 0;
		} else if (result < 0 || !pv_net_command(w->net, &w->chain)) {
			pv_net_break(w->net, result < 0 ? pv_virtqueue_error(ring)
			                                : "a command that cannot be answered");
			more = false;
		} else {
			pv_virtqueue_push(ring, w->chain.head, 1);
			pv_net_count(w, PV_COMMANDS, 1);
		}
	}
	pv_virtqueue_publish(ring);
	if (pv_virtqueue_needs_notify(ring))
		pv_virtio_irq_used(w->net->irq);
	return more;
}

bool pv_net_pass(struct pv_net_worker *w, bool has_polled)
{
	struct pv_net *net = w->net;
	bool more = false;

	w->armed = pv_faults_armed(net->faults);
	if (w->armed & PV_FAULT_BROKEN) {
		atomic_store(&net->broken, true);
		return false;
	}
	if (!pv_net_is_away(net) && w->index < atomic_load(&net->active)) {
		serve_pair(w, has_polled);
		more = w->rx.wait == PV_WAIT_NONE || w->tx.wait == PV_WAIT_NONE;
	} else {
		w->rx.wait = w->tx.wait = PV_WAIT_GONE;
	}
	if (w->index == 0) {
		more |= net->ctrl.ring && serve_ctrl(w);
		pv_net_ask_to_announce(net);
	}
	return more;
}

void pv_net_look_at_port(struct pv_net_worker *w, short events)
{
	if (events & POLLIN && w->rx.wait == PV_WAIT_PORT)
		w->rx.wait = PV_WAIT_NONE;
	else if (events & (POLLERR | POLLHUP | POLLNVAL))
		pv_net_lose(w);
	if (events & POLLOUT && w->tx.wait == PV_WAIT_PORT)
		w->tx.wait = PV_WAIT_NONE;
}

uint64_t pv_net_delay(const struct pv_net_worker *w)
{
	uint64_t rx = w->rx.wait == PV_WAIT_TIME ? w->rx.delay_ns : UINT64_MAX;
	uint64_t tx = w->tx.wait == PV_WAIT_TIME ? w->tx.delay_ns : UINT64_MAX;
	uint64_t delay = rx < tx ? rx : tx;
	uint64_t announcement = w->index == 0 ? pv_net_announcement_delay(w->net) : UINT64_MAX;

	return announcement < delay ? announcement : delay;
}
