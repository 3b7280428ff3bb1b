/* The connections of a device: a table of fixed size, found by their ports, and the queue of those
 * that have something for the driver. */
#include <string.h>
#include <unistd.h>

#include "vsock/internal.h"

static uint32_t bucket(uint32_t guest_port, uint32_t host_port)
{
	uint64_t both = (uint64_t)guest_port << 32 | host_port;

	return (uint32_t)((both * UINT64_C(0x9e3779b97f4a7c15)) >> 32) % PV_VSOCK_BUCKETS;
}

bool pv_vsock_has_room(const struct pv_vsock *vsock)
{
	return vsock->free || vsock->used < vsock->limit;
}

void pv_vsock_enter(struct pv_vsock *vsock, struct pv_vsock_conn *conn, enum pv_vsock_state state)
{
	vsock->greeters -= conn->state == PV_VSOCK_GREETING;
	vsock->knockers -= conn->state == PV_VSOCK_KNOCKING;
	vsock->greeters += state == PV_VSOCK_GREETING;
	vsock->knockers += state == PV_VSOCK_KNOCKING;
	conn->state = state;
}

struct pv_vsock_conn *pv_vsock_take(struct pv_vsock *vsock, enum pv_vsock_state state)
{
	struct pv_vsock_conn *conn = vsock->free;

	if (conn)
		vsock->free = conn->next_free;
	else if (vsock->used < vsock->limit)
		conn = &vsock->conns[vsock->used++];
	else
		return NULL;
	*conn = (struct pv_vsock_conn){
		.fd = -1,
		.queued = conn->queued,
		.next_queued = conn->next_queued,
	};
	pv_vsock_take_ring(vsock, conn);
	pv_vsock_enter(vsock, conn, state);
	return conn;
}

void pv_vsock_drop(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	pv_vsock_unname(vsock, conn);
	pv_vsock_set_deadline(vsock, conn, 0);
	pv_vsock_enter(vsock, conn, PV_VSOCK_FREE);
	if (conn->fd >= 0)
		close(conn->fd);
	pv_vsock_give_ring_back(vsock, conn);
	conn->fd = -1;
	conn->owed = 0;
	conn->next_free = vsock->free;
	vsock->free = conn;
}

void pv_vsock_name(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t guest_port,
                   uint32_t host_port)
{
	struct pv_vsock_conn **first = &vsock->named[bucket(guest_port, host_port)];

	conn->guest_port = guest_port;
	conn->host_port = host_port;
	conn->named = true;
	conn->next_named = *first;
	*first = conn;
}

void pv_vsock_unname(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	struct pv_vsock_conn **at = &vsock->named[bucket(conn->guest_port, conn->host_port)];

	if (!conn->named)
		return;
	while (*at != conn)
		at = &(*at)->next_named;
	*at = conn->next_named;
	conn->named = false;
}

struct pv_vsock_conn *pv_vsock_find(struct pv_vsock *vsock, uint32_t guest_port,
                                    uint32_t host_port)
{
	struct pv_vsock_conn *conn = vsock->named[bucket(guest_port, host_port)];

	while (conn && (conn->guest_port != guest_port || conn->host_port != host_port))
		conn = conn->next_named;
	return conn;
}

void pv_vsock_set_deadline(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint64_t span_ns)
{
	vsock->timed -= conn->deadline > 0;
	conn->deadline = span_ns > 0 ? pv_deadline(span_ns) : 0;
	vsock->timed += conn->deadline > 0;
}

void pv_vsock_enqueue(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	if (conn->queued)
		return;
	conn->queued = true;
	conn->next_queued = NULL;
	if (vsock->queue_head)
		vsock->queue_tail->next_queued = conn;
	else
		vsock->queue_head = conn;
	vsock->queue_tail = conn;
}

struct pv_vsock_conn *pv_vsock_dequeue(struct pv_vsock *vsock)
{
	struct pv_vsock_conn *conn = vsock->queue_head;

	if (conn) {
		vsock->queue_head = conn->next_queued;
		conn->queued = false;
	}
	return conn;
}

void pv_vsock_drop_all(struct pv_vsock *vsock)
{
	for (uint32_t i = 0; i < vsock->used; i++) {
		struct pv_vsock_conn *conn = &vsock->conns[i];

		if (conn->state == PV_VSOCK_OPEN)
			pv_vsock_count(vsock, PV_VSOCK_ENDED, 1);
		if (conn->state != PV_VSOCK_FREE)
			pv_vsock_drop(vsock, conn);
	}
	memset(vsock->conns, 0, vsock->used * sizeof(vsock->conns[0]));
	vsock->used = 0;
	vsock->free = vsock->queue_head = vsock->queue_tail = NULL;
	vsock->reply_first = vsock->reply_count = 0;
}
