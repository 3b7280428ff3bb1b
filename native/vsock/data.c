/* Bytes from the driver: straight to the socket, and what that does not take into memory, to which
 * the credit that the driver was given is the bound. */
#include <errno.h>
#include <sys/socket.h>

#include "virtio/iov_internal.h"
#include "vsock/internal.h"

/* The driver is told of room once what it knows to be free is less than half. */
static void forwarded(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t bytes)
{
	conn->forwarded += bytes;
	if (conn->state != PV_VSOCK_OPEN || conn->forwarded == conn->told ||
	    conn->received - conn->told <= conn->room / 2)
		return;
	conn->owed |= PV_VSOCK_OWES_UPDATE;
	pv_vsock_enqueue(vsock, conn);
}

static void drop_bytes(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t bytes)
{
	pv_vsock_count(vsock, PV_VSOCK_DROPPED, bytes);
	forwarded(vsock, conn, bytes);
}

static void turn_deaf(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	uint32_t held = conn->held;

	conn->deaf = true;
	conn->held = 0;
	drop_bytes(vsock, conn, held);
	pv_vsock_host_shuts(vsock, conn, VIRTIO_VSOCK_SHUTDOWN_RCV);
}

/* Bytes that the socket took; less than there were: it is full, or deaf. */
static uint32_t send_some(struct pv_vsock *vsock, struct pv_vsock_conn *conn,
                          const struct iovec *iov, uint32_t count)
{
	struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};
	ssize_t bytes;

	do
		bytes = sendmsg(conn->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (bytes < 0 && errno == EINTR);
	if (bytes >= 0) {
		pv_vsock_count(vsock, PV_VSOCK_BYTES_OUT, (uint64_t)bytes);
		return (uint32_t)bytes;
	}
	if (errno == ENOBUFS || errno == ENOMEM)
		conn->waits_out = false; /* no edge will tell of room */
	else if (errno != EAGAIN)
		turn_deaf(vsock, conn);
	return 0;
}

/* The segments of `length` bytes behind the header. */
static uint32_t payload(struct pv_vsock *vsock, uint32_t length)
{
	const struct pv_chain *chain = &vsock->chain;
	size_t skip = PV_VSOCK_HEADER;
	uint32_t count = 0;

	for (uint32_t i = 0; i < chain->readable && length > 0; i++) {
		struct iovec piece = chain->iov[i];
		size_t before = skip < piece.iov_len ? skip : piece.iov_len;

		skip -= before;
		piece.iov_base = (char *)piece.iov_base + before;
		piece.iov_len -= before;
		if (piece.iov_len > length)
			piece.iov_len = length;
		if (piece.iov_len > 0)
			vsock->iov[count++] = piece;
		length -= (uint32_t)piece.iov_len;
	}
	return count;
}

/* Keep the bytes from `done` on, for which the credit has room. */
static void keep(const struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t done,
                 uint32_t length)
{
	const struct pv_chain *chain = &vsock->chain;
	uint32_t end, first, left = length - done;

	conn->keeps = true;
	end = (conn->start + conn->held) % conn->room;
	first = left < conn->room - end ? left : conn->room - end;
	pv_iov_gather(chain->iov, chain->readable, PV_VSOCK_HEADER + done, conn->data + end, first);
	pv_iov_gather(chain->iov, chain->readable, PV_VSOCK_HEADER + done + first, conn->data,
	              left - first);
	conn->held += left;
}

void pv_vsock_deliver(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t length)
{
	uint32_t done = 0;

	conn->received += length;
	if (!conn->deaf && conn->held == 0)
		done = send_some(vsock, conn, vsock->iov, payload(vsock, length));
	if (conn->deaf) {
		drop_bytes(vsock, conn, length - done);
	} else if (done < length) {
		if (conn->held == 0)
			pv_vsock_count(vsock, PV_VSOCK_BLOCKED, 1);
		keep(vsock, conn, done, length);
		if (!pv_vsock_watch(vsock, conn)) {
			pv_vsock_abort(vsock, conn);
			return;
		}
	}
	forwarded(vsock, conn, done);
}

void pv_vsock_flush(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	uint32_t first = conn->room - conn->start, done;
	struct iovec iov[2];

	if (conn->held == 0)
		return;
	iov[0] = (struct iovec){conn->data + conn->start, conn->held};
	if (conn->held > first) {
		iov[0].iov_len = first;
		iov[1] = (struct iovec){conn->data, conn->held - first};
	}
	done = send_some(vsock, conn, iov, conn->held > first ? 2 : 1);
	if (!conn->deaf) {
		conn->held -= done;
		conn->start = conn->held > 0 ? (conn->start + done) % conn->room : 0;
		forwarded(vsock, conn, done);
	}
	pv_vsock_settle(vsock, conn);
}
