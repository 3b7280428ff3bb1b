/* The thread of a socket device. */
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "virtio/irq.h"
#include "sandbox/filter.h"
#include "vsock/internal.h"

#define EVENTS 64     /* taken in at once */
#define KNOCK_MS 10   /* between two attempts to reach a server that is busy */
#define LOOK_MS 1000  /* between two looks at the deadlines */
#define NS_PER_MS 1000000

static void on_deadline(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	if (conn->state == PV_VSOCK_GREETING) {
		pv_vsock_count(vsock, PV_VSOCK_REFUSED, 1);
		pv_vsock_drop(vsock, conn);
	} else if (conn->state == PV_VSOCK_OPEN) {
		conn->owed |= PV_VSOCK_OWES_ASKING;
		pv_vsock_set_deadline(vsock, conn, PV_VSOCK_STALL_NS);
		pv_vsock_enqueue(vsock, conn);
	} else {
		pv_vsock_abort(vsock, conn);
	}
}

/* At most once in LOOK_MS, or KNOCK_MS while somebody knocks. */
static void look_at_time(struct pv_vsock *vsock)
{
	uint64_t now = pv_now_ns();
	uint64_t span = vsock->knockers > 0 ? KNOCK_MS : LOOK_MS;

	if (now - vsock->looked_at < span * NS_PER_MS)
		return;
	vsock->looked_at = now;
	if (vsock->retry_at > 0 && vsock->retry_at <= now) {
		vsock->retry_at = 0;
		vsock->clients = true;
	}
	for (uint32_t i = 0; i < vsock->used; i++) {
		struct pv_vsock_conn *conn = &vsock->conns[i];

		if (conn->deadline > 0 && conn->deadline <= now)
			on_deadline(vsock, conn);
		else if (conn->state == PV_VSOCK_KNOCKING)
			pv_vsock_knock(vsock, conn);
	}
}

static bool has_packets(const struct pv_vsock *vsock)
{
	return vsock->rx_wait == PV_VSOCK_MORE && (vsock->queue_head || vsock->reply_count > 0);
}

static bool has_clients(const struct pv_vsock *vsock)
{
	return vsock->clients && pv_vsock_has_room(vsock);
}

static bool is_timed(const struct pv_vsock *vsock)
{
	return vsock->timed > 0 || vsock->retry_at > 0;
}

void pv_vsock_serve(struct pv_vsock *vsock)
{
	if (is_timed(vsock))
		look_at_time(vsock);
	pv_vsock_accept(vsock);
	if (vsock->tx_wait == PV_VSOCK_MORE)
		pv_vsock_take_packets(vsock);
	if (has_packets(vsock) && !vsock->broken)
		pv_vsock_send_packets(vsock);
	if (vsock->notify) {
		vsock->notify = false;
		pv_vsock_count(vsock, PV_VSOCK_INTERRUPTS, 1);
		pv_virtio_irq_used(vsock->irq);
	}
	if (vsock->broken)
		pv_vsock_drop_all(vsock);
}

static void on_socket(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t events)
{
	conn->gone |= (events & (EPOLLHUP | EPOLLERR)) != 0;
	conn->ending |= (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
	conn->readable = true;
	if (conn->state == PV_VSOCK_GREETING) {
		pv_vsock_greet(vsock, conn);
	} else if (conn->state == PV_VSOCK_REQUESTED) {
		if (conn->gone)
			pv_vsock_abort(vsock, conn);
	} else if (conn->state == PV_VSOCK_OPEN || conn->state == PV_VSOCK_DRAINING) {
		if (conn->gone && conn->heard_out)
			pv_vsock_host_shuts(vsock, conn, VIRTIO_VSOCK_SHUTDOWN_RCV |
			                                         VIRTIO_VSOCK_SHUTDOWN_SEND);
		pv_vsock_enqueue(vsock, conn);
		if (events & EPOLLOUT && conn->held == 0)
			(void)pv_vsock_watch(vsock, conn);
		pv_vsock_flush(vsock, conn);
	}
}

static void look(struct pv_vsock *vsock, const struct epoll_event *event)
{
	switch (event->data.u64) {
	case PV_VSOCK_ON_WAKE:
		break;
	case PV_VSOCK_ON_RX:
		pv_vsock_count(vsock, PV_VSOCK_KICKS, 1);
		vsock->rx_wait = PV_VSOCK_MORE;
		break;
	case PV_VSOCK_ON_TX:
		pv_vsock_count(vsock, PV_VSOCK_KICKS, 1);
		if (vsock->tx_wait == PV_VSOCK_KICK)
			vsock->tx_wait = PV_VSOCK_MORE;
		break;
	case PV_VSOCK_ON_CLIENTS:
		vsock->clients = true;
		break;
	default:
		/* Of one that is closed meanwhile, and its place taken, it says no more than that
		 * something may have changed. */
		on_socket(vsock, &vsock->conns[event->data.u64 - PV_VSOCK_ON_CONN], event->events);
	}
}

static int timeout_of(const struct pv_vsock *vsock)
{
	if (has_packets(vsock) || has_clients(vsock) || vsock->tx_wait == PV_VSOCK_MORE)
		return 0;
	return vsock->knockers > 0 ? KNOCK_MS : is_timed(vsock) ? LOOK_MS : -1;
}

void pv_vsock_wait(struct pv_vsock *vsock, int timeout_ms)
{
	struct epoll_event events[EVENTS];
	int own = timeout_of(vsock);
	int timeout = timeout_ms < 0 || (own >= 0 && own < timeout_ms) ? own : timeout_ms;
	int count = epoll_wait(vsock->epoll_fd, events, EVENTS, timeout);

	for (int i = 0; i < count; i++)
		look(vsock, &events[i]);
}

void *pv_vsock_run(void *device)
{
	struct pv_vsock *vsock = device;
	struct epoll_event event;
	eventfd_t value;

	pv_thread_is(PV_SANDBOX_VSOCK, "vsock", pv_virtio_irq_name(vsock->irq));
	while (!pv_thread_is_to_end(&vsock->thread)) {
		if (vsock->broken) {
			(void)epoll_wait(vsock->epoll_fd, &event, 1, -1);
			continue;
		}
		pv_vsock_serve(vsock);
		if (!vsock->broken)
			pv_vsock_wait(vsock, -1);
	}
	(void)eventfd_read(vsock->wake_fd, &value);
	return NULL;
}
