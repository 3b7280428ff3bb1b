/* Packets to the driver: those that a connection owes, and what its socket has to say, which is
 * read straight into several receive buffers by one system call. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "virtio/iov_internal.h"
#include "vsock/internal.h"

#define TURNS 32 /* of connections, before others have theirs */

/* Add the buffer in `vsock->chain`, of which no more than `limit` bytes are to be filled. */
static void add_buffer(struct pv_vsock *vsock, uint64_t limit)
{
	struct pv_vsock_batch *batch = &vsock->batch;
	const struct pv_chain *chain = &vsock->chain;
	uint64_t room = chain->writable_bytes - PV_VSOCK_HEADER;
	size_t skip = PV_VSOCK_HEADER;
	uint32_t bytes = (uint32_t)(room < limit ? room : limit), left = bytes;

	batch->chain[batch->chains].head = chain->head;
	batch->chain[batch->chains].count = chain->writable;
	batch->chain[batch->chains].first = batch->segments;
	batch->chain[batch->chains++].bytes = bytes;
	for (uint32_t i = 0; i < chain->writable; i++) {
		struct iovec piece = chain->iov[i];
		size_t before = skip < piece.iov_len ? skip : piece.iov_len;

		batch->iov[batch->segments++] = piece;
		skip -= before;
		piece.iov_base = (char *)piece.iov_base + before;
		piece.iov_len -= before;
		if (piece.iov_len > left)
			piece.iov_len = left;
		if (piece.iov_len > 0)
			batch->data[batch->data_segments++] = piece;
		left -= (uint32_t)piece.iov_len;
	}
	batch->bytes += bytes;
}

/* Take `most` buffers at most, for up to `limit` bytes. False: there are none, or the device is
 * broken. */
static bool gather(struct pv_vsock *vsock, uint32_t most, uint32_t limit)
{
	struct pv_vsock_batch *batch = &vsock->batch;

	batch->chains = batch->segments = batch->data_segments = 0;
	batch->bytes = 0;
	while (batch->chains < most && batch->bytes < limit) {
		const struct pv_chain *chain = &vsock->chain;

		/* Only the first is waited for. */
		if (batch->chains == 0) {
			if (pv_vsock_take_buffer(vsock) <= 0)
				return false;
		} else if (pv_virtqueue_pop(vsock->rx.ring, &vsock->chain) <= 0 ||
		           chain->readable > 0 || chain->writable_bytes <= PV_VSOCK_HEADER) {
			break;
		}
		if (chain->writable > PV_VSOCK_SEGMENTS - batch->segments)
			break;
		add_buffer(vsock, limit - batch->bytes);
	}
	return true;
}

/* Buffers that stay empty were looked at for nothing: take as many the next time as were filled, and
 * one that shows that this was all. Where all were, there may be any number more. */
static void expect(struct pv_vsock_conn *conn, uint32_t filled, bool all)
{
	uint32_t slowly = conn->chains - conn->chains / 4;

	conn->chains = all ? PV_VSOCK_CHAINS : filled + 1 > slowly ? filled + 1 : slowly;
}

/* Give the first `bytes` of the batch to the driver, and put back the buffers without any. */
static void hand_over(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t bytes)
{
	const struct pv_vsock_batch *batch = &vsock->batch;
	struct virtio_vsock_hdr header = pv_vsock_compose(vsock, conn, VIRTIO_VSOCK_OP_RW, 0);
	uint32_t i;

	for (i = 0; i < batch->chains && bytes > 0; i++) {
		uint32_t part = batch->chain[i].bytes < bytes ? batch->chain[i].bytes : bytes;

		header.len = part;
		pv_iov_scatter(&batch->iov[batch->chain[i].first], batch->chain[i].count, 0, &header,
		               sizeof(header));
		pv_virtqueue_push(vsock->rx.ring, batch->chain[i].head, PV_VSOCK_HEADER + part);
		pv_vsock_count(vsock, PV_VSOCK_PACKETS_IN, 1);
		bytes -= part;
	}
	expect(conn, i, i == batch->chains);
}

static ssize_t read_some(struct pv_vsock *vsock, const struct pv_vsock_conn *conn)
{
	struct msghdr message = {
		.msg_iov = vsock->batch.data,
		.msg_iovlen = vsock->batch.data_segments,
	};
	ssize_t bytes;

	do
		bytes = recvmsg(conn->fd, &message, MSG_DONTWAIT);
	while (bytes < 0 && errno == EINTR);
	return bytes < 0 ? -errno : bytes;
}

static void on_read(struct pv_vsock *vsock, struct pv_vsock_conn *conn, ssize_t bytes)
{
	if (bytes > 0) {
		conn->sent += (uint32_t)bytes;
		pv_vsock_count(vsock, PV_VSOCK_BYTES_IN, (uint64_t)bytes);
		/* Less than there was room for is all that there was, but for the end. */
		conn->readable = (uint64_t)bytes == vsock->batch.bytes || conn->ending;
	} else if (bytes == -EAGAIN) {
		conn->readable = false;
	} else {
		conn->heard_out = true;
		conn->gone |= bytes < 0;
		pv_vsock_host_shuts(vsock, conn, conn->gone ? VIRTIO_VSOCK_SHUTDOWN_RCV |
		                                                      VIRTIO_VSOCK_SHUTDOWN_SEND
		                                            : VIRTIO_VSOCK_SHUTDOWN_SEND);
	}
}

static void stall(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	if (conn->stalled)
		return;
	conn->stalled = true;
	pv_vsock_count(vsock, PV_VSOCK_STALLS, 1);
	pv_vsock_set_deadline(vsock, conn, PV_VSOCK_STALL_NS);
}

/* False: there were no buffers. */
static bool send_data(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	uint32_t credit = pv_vsock_credit(conn);
	uint32_t most = conn->chains ? conn->chains : PV_VSOCK_CHAINS;
	ssize_t bytes;

	if (credit == 0) {
		stall(vsock, conn);
		return true;
	}
	if (pv_faults_armed(vsock->faults) & PV_FAULT_RX)
		most = 1; /* a fault is for one packet */
	if (!gather(vsock, most, credit < PV_VSOCK_BATCH ? credit : PV_VSOCK_BATCH))
		return false;
	bytes = read_some(vsock, conn);
	if (bytes > 0 && !pv_vsock_is_lost(vsock, PV_FAULT_RX))
		hand_over(vsock, conn, (uint32_t)bytes);
	pv_virtqueue_rewind(vsock->rx.ring);
	on_read(vsock, conn, bytes);
	return true;
}

static uint16_t operation(uint8_t owed)
{
	static const uint16_t OPERATIONS[] = {
		VIRTIO_VSOCK_OP_REQUEST,        VIRTIO_VSOCK_OP_RESPONSE, VIRTIO_VSOCK_OP_CREDIT_UPDATE,
		VIRTIO_VSOCK_OP_CREDIT_REQUEST, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_OP_RST,
	};

	return OPERATIONS[__builtin_ctz(owed)];
}

/* Send the packets without data. False: there were no buffers. */
static bool send_owed(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	while (conn->owed) {
		uint16_t op = operation(conn->owed);
		struct virtio_vsock_hdr header = pv_vsock_compose(vsock, conn, op, 0);

		if (!pv_vsock_send_header(vsock, &header))
			return false;
		conn->owed &= (uint8_t)(conn->owed - 1);
		if (op == VIRTIO_VSOCK_OP_RST) {
			pv_vsock_drop(vsock, conn);
			return true;
		}
		if (op == VIRTIO_VSOCK_OP_SHUTDOWN)
			pv_vsock_host_has_shut(vsock, conn);
	}
	return true;
}

static bool has_data(const struct pv_vsock_conn *conn)
{
	return conn->state == PV_VSOCK_OPEN && conn->readable && !conn->heard_out && !conn->stalled;
}

/* False: there were no buffers, or the device is broken. */
static bool serve(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	bool sent = send_owed(vsock, conn) && (!has_data(conn) || send_data(vsock, conn));

	if (!sent || conn->owed || has_data(conn))
		pv_vsock_enqueue(vsock, conn);
	return sent;
}

void pv_vsock_send_packets(struct pv_vsock *vsock)
{
	struct pv_vsock_conn *conn;
	bool sent = pv_vsock_send_replies(vsock);

	for (uint32_t i = 0; i < TURNS && sent && (conn = pv_vsock_dequeue(vsock)); i++)
		sent = conn->state == PV_VSOCK_FREE || serve(vsock, conn);
	pv_vsock_publish(vsock, vsock->rx.ring);
	if (vsock->tx_wait == PV_VSOCK_FULL && vsock->reply_count < PV_VSOCK_REPLIES)
		vsock->tx_wait = PV_VSOCK_MORE;
}
