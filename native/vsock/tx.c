/* Packets of the driver (virtio 1.2, 5.10.6): each is read once and checked, and then acted on. */
#include <sys/socket.h>

#include "virtio/iov_internal.h"
#include "vsock/internal.h"

#define PACKETS 64          /* before others have their turn */
#define BYTES (1024 * 1024) /* the same */
#define BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)

/* Whether the packet can be one of a connection's at all. */
static bool is_sound(const struct pv_vsock *vsock, const struct virtio_vsock_hdr *header)
{
	return header->type == VIRTIO_VSOCK_TYPE_STREAM && header->src_cid == vsock->guest_cid &&
	       header->dst_cid == PV_VSOCK_HOST && header->op != VIRTIO_VSOCK_OP_INVALID &&
	       header->op <= VIRTIO_VSOCK_OP_CREDIT_REQUEST &&
	       (header->len == 0 || header->op == VIRTIO_VSOCK_OP_RW);
}

/* Take what a packet says of the driver's buffer. One that was overtaken by another may say less
 * than is known. False: more is said to be forwarded than was sent. */
static bool take_credit(struct pv_vsock *vsock, struct pv_vsock_conn *conn,
                        const struct virtio_vsock_hdr *header)
{
	if ((int32_t)(header->fwd_cnt - conn->sent) > 0)
		return false;
	if ((int32_t)(header->fwd_cnt - conn->peer_forwarded) > 0)
		conn->peer_forwarded = header->fwd_cnt;
	conn->peer_room = header->buf_alloc;
	if (conn->stalled && pv_vsock_credit(conn) > 0) {
		conn->stalled = false;
		pv_vsock_set_deadline(vsock, conn, 0);
		pv_vsock_enqueue(vsock, conn);
	}
	return true;
}

static void on_shutdown(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t flags)
{
	conn->guest_shut |= (uint8_t)(flags & BOTH);
	if (conn->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV && !conn->heard_out) {
		conn->heard_out = true;
		shutdown(conn->fd, SHUT_RD);
	}
	pv_vsock_settle(vsock, conn);
}

/* A packet on an open connection; false: it may not be sent there. */
static bool on_open(struct pv_vsock *vsock, struct pv_vsock_conn *conn,
                    const struct virtio_vsock_hdr *header)
{
	if (!take_credit(vsock, conn, header))
		return false;
	switch (header->op) {
	case VIRTIO_VSOCK_OP_RW:
		if (conn->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND ||
		    header->len > conn->room - conn->held)
			return false;
		pv_vsock_deliver(vsock, conn, header->len);
		return true;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		on_shutdown(vsock, conn, header->flags);
		return true;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		conn->owed |= PV_VSOCK_OWES_UPDATE;
		pv_vsock_enqueue(vsock, conn);
		return true;
	default:
		return header->op == VIRTIO_VSOCK_OP_CREDIT_UPDATE;
	}
}

/* The socket is closed, which the driver may not have known when it sent this. */
static bool on_closing(struct pv_vsock *vsock, struct pv_vsock_conn *conn,
                       const struct virtio_vsock_hdr *header)
{
	if (header->op == VIRTIO_VSOCK_OP_RW)
		pv_vsock_count(vsock, PV_VSOCK_DROPPED, header->len);
	else if (header->op == VIRTIO_VSOCK_OP_SHUTDOWN && (header->flags & BOTH) == BOTH)
		pv_vsock_abort(vsock, conn);
	return header->op != VIRTIO_VSOCK_OP_REQUEST && header->op != VIRTIO_VSOCK_OP_RESPONSE;
}

/* False: the packet may not be sent there. */
static bool on_packet(struct pv_vsock *vsock, struct pv_vsock_conn *conn,
                      const struct virtio_vsock_hdr *header)
{
	switch (conn->state) {
	case PV_VSOCK_OPEN:
		return on_open(vsock, conn, header);
	case PV_VSOCK_CLOSING:
		return on_closing(vsock, conn, header);
	case PV_VSOCK_REQUESTED:
		if (header->op != VIRTIO_VSOCK_OP_RESPONSE ||
		    conn->owed & PV_VSOCK_OWES_REQUEST || !take_credit(vsock, conn, header))
			return false;
		pv_vsock_on_response(vsock, conn);
		return true;
	default:
		return false;
	}
}

static void handle(struct pv_vsock *vsock, const struct virtio_vsock_hdr *header)
{
	bool is_rst = header->op == VIRTIO_VSOCK_OP_RST;
	bool sound = is_sound(vsock, header);
	struct pv_vsock_conn *conn =
		sound ? pv_vsock_find(vsock, header->src_port, header->dst_port) : NULL;

	if (!sound)
		pv_vsock_count(vsock, PV_VSOCK_MALFORMED, 1);
	if (conn && is_rst) {
		pv_vsock_on_rst(vsock, conn);
	} else if (conn) {
		if (on_packet(vsock, conn, header))
			return;
		pv_vsock_count(vsock, PV_VSOCK_MALFORMED, 1);
		pv_vsock_abort(vsock, conn);
	} else if (sound && header->op == VIRTIO_VSOCK_OP_REQUEST) {
		pv_vsock_on_request(vsock, header);
	} else if (!is_rst) {
		pv_vsock_reply_rst(vsock, header);
	}
}

/* The header of the chain, in a private copy; NULL, or what a driver may not do. */
static const char *read_header(const struct pv_chain *chain, struct virtio_vsock_hdr *header)
{
	if (chain->writable > 0)
		return "a packet that is to be written";
	if (pv_iov_gather(chain->iov, chain->readable, 0, header, sizeof(*header)) <
	    sizeof(*header))
		return "a packet without a whole header";
	if (header->len > chain->readable_bytes - sizeof(*header))
		return "a packet shorter than its header says";
	return NULL;
}

/* Bytes of the packet, header and all; 0: there is none, or the device is broken. */
static uint64_t take_packet(struct pv_vsock *vsock)
{
	struct pv_virtqueue *ring = vsock->tx.ring;
	struct virtio_vsock_hdr header;
	int result = pv_virtqueue_pop(ring, &vsock->chain);
	uint16_t head = vsock->chain.head;
	const char *why;

	if (result == 0) {
		vsock->tx_wait = pv_virtqueue_enable_kicks(ring) ? PV_VSOCK_MORE : PV_VSOCK_KICK;
		return 0;
	}
	why = result < 0 ? pv_virtqueue_error(ring) : read_header(&vsock->chain, &header);
	if (why) {
		pv_vsock_break(vsock, why);
		return 0;
	}
	pv_vsock_count(vsock, PV_VSOCK_PACKETS_OUT, 1);
	if (!pv_vsock_is_lost(vsock, PV_FAULT_TX))
		handle(vsock, &header);
	pv_virtqueue_push(ring, head, 0);
	return sizeof(header) + header.len;
}

/* Each packet may ask for a reply: as many wait as there is room for, and then so do packets. */
void pv_vsock_take_packets(struct pv_vsock *vsock)
{
	uint64_t bytes = 0, more = 1;

	pv_virtqueue_disable_kicks(vsock->tx.ring);
	for (uint32_t i = 0; i < PACKETS && bytes < BYTES && more > 0; i++) {
		if (vsock->reply_count == PV_VSOCK_REPLIES) {
			vsock->tx_wait = PV_VSOCK_FULL;
			break;
		}
		more = take_packet(vsock);
		bytes += more;
	}
	pv_vsock_publish(vsock, vsock->tx.ring);
}
