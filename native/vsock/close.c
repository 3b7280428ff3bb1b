/* How a connection ends: in order, one direction after the other or both together, or at once. */
#include <sys/socket.h>
#include <unistd.h>

#include "vsock/internal.h"

#define BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)

static void close_socket(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	if (conn->state == PV_VSOCK_OPEN)
		pv_vsock_count(vsock, PV_VSOCK_ENDED, 1);
	else if (conn->state == PV_VSOCK_REQUESTED || conn->state == PV_VSOCK_KNOCKING)
		pv_vsock_count(vsock, PV_VSOCK_REFUSED, 1);
	pv_vsock_count(vsock, PV_VSOCK_DROPPED, conn->held);
	conn->held = 0;
	if (conn->fd >= 0)
		close(conn->fd);
	conn->fd = -1;
	pv_vsock_set_deadline(vsock, conn, 0);
	pv_vsock_enter(vsock, conn, PV_VSOCK_CLOSING);
}

void pv_vsock_abort(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	bool unknown = (conn->owed & PV_VSOCK_OWES_REQUEST) != 0 || !conn->named;

	close_socket(vsock, conn);
	if (unknown) {
		pv_vsock_drop(vsock, conn);
		return;
	}
	conn->owed = PV_VSOCK_OWES_RST;
	pv_vsock_enqueue(vsock, conn);
}

void pv_vsock_on_rst(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	/* What was sent before the end in good order is still the host's. */
	if (conn->state == PV_VSOCK_OPEN && conn->held > 0 &&
	    conn->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND) {
		pv_vsock_count(vsock, PV_VSOCK_ENDED, 1);
		pv_vsock_unname(vsock, conn);
		pv_vsock_set_deadline(vsock, conn, 0);
		conn->owed = 0;
		pv_vsock_enter(vsock, conn, PV_VSOCK_DRAINING);
		return;
	}
	close_socket(vsock, conn);
	pv_vsock_drop(vsock, conn);
}

void pv_vsock_host_shuts(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint8_t flags)
{
	if (conn->state != PV_VSOCK_OPEN || !(flags & ~conn->host_shut))
		return;
	conn->host_shut |= flags;
	conn->owed |= PV_VSOCK_OWES_SHUTDOWN;
	pv_vsock_enqueue(vsock, conn);
}

void pv_vsock_host_has_shut(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	if (conn->state != PV_VSOCK_OPEN || conn->host_shut != BOTH)
		return;
	close_socket(vsock, conn);
	conn->owed = 0;
	pv_vsock_set_deadline(vsock, conn, PV_VSOCK_CLOSING_NS);
}

void pv_vsock_settle(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	if (conn->held > 0)
		return;
	if (conn->state == PV_VSOCK_DRAINING) {
		pv_vsock_drop(vsock, conn);
	} else if (conn->state == PV_VSOCK_OPEN && conn->guest_shut == BOTH) {
		pv_vsock_abort(vsock, conn);
	} else if (conn->state == PV_VSOCK_OPEN && !conn->write_shut &&
	           conn->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND) {
		conn->write_shut = true;
		shutdown(conn->fd, SHUT_WR);
	}
}
