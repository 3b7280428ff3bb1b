/* Packets to the driver (virtio 1.2, 5.10.6), but for those with data: rx.c. */
#include "virtio/iov_internal.h"
#include "vsock/internal.h"

#define ROOM_MAX (UINT32_C(1) << 30) /* so that counters can be compared, modulo 2^32 */

struct virtio_vsock_hdr pv_vsock_compose(struct pv_vsock *vsock, struct pv_vsock_conn *conn,
                                         uint16_t op, uint32_t length)
{
	conn->told = conn->forwarded;
	return (struct virtio_vsock_hdr){
		.src_cid = PV_VSOCK_HOST,
		.dst_cid = vsock->guest_cid,
		.src_port = conn->host_port,
		.dst_port = conn->guest_port,
		.len = length,
		.type = VIRTIO_VSOCK_TYPE_STREAM,
		.op = op,
		.flags = op == VIRTIO_VSOCK_OP_SHUTDOWN ? conn->host_shut : 0,
		.buf_alloc = conn->room,
		.fwd_cnt = conn->forwarded,
	};
}

uint32_t pv_vsock_credit(const struct pv_vsock_conn *conn)
{
	uint32_t in_flight = conn->sent - conn->peer_forwarded;
	uint32_t room = conn->peer_room < ROOM_MAX ? conn->peer_room : ROOM_MAX;

	return in_flight < room ? room - in_flight : 0;
}

static bool wait_for_buffers(struct pv_vsock *vsock)
{
	if (pv_virtqueue_enable_kicks(vsock->rx.ring))
		return true;
	vsock->rx_wait = PV_VSOCK_KICK;
	pv_vsock_count(vsock, PV_VSOCK_STARVED, 1);
	return false;
}

int pv_vsock_take_buffer(struct pv_vsock *vsock)
{
	struct pv_virtqueue *ring = vsock->rx.ring;
	const struct pv_chain *chain = &vsock->chain;
	const char *why = NULL;
	int result;

	do
		result = pv_virtqueue_pop(ring, &vsock->chain);
	while (result == 0 && wait_for_buffers(vsock));
	if (result == 0)
		return 0;
	if (result < 0)
		why = pv_virtqueue_error(ring);
	else if (chain->readable > 0)
		why = "a receive buffer that is to be read";
	else if (chain->writable_bytes <= PV_VSOCK_HEADER)
		why = "a receive buffer without room for a packet";
	if (!why)
		return 1;
	pv_vsock_break(vsock, why);
	return -1;
}

bool pv_vsock_send_header(struct pv_vsock *vsock, const struct virtio_vsock_hdr *header)
{
	const struct pv_chain *chain = &vsock->chain;

	if (pv_vsock_is_lost(vsock, PV_FAULT_RX))
		return true;
	if (pv_vsock_take_buffer(vsock) <= 0)
		return false;
	pv_iov_scatter(chain->iov, chain->writable, 0, header, sizeof(*header));
	pv_virtqueue_push(vsock->rx.ring, chain->head, sizeof(*header));
	pv_vsock_count(vsock, PV_VSOCK_PACKETS_IN, 1);
	pv_vsock_count(vsock, PV_VSOCK_RESETS, header->op == VIRTIO_VSOCK_OP_RST);
	return true;
}

void pv_vsock_reply_rst(struct pv_vsock *vsock, const struct virtio_vsock_hdr *header)
{
	uint32_t place = (vsock->reply_first + vsock->reply_count++) % PV_VSOCK_REPLIES;

	vsock->replies[place] = (struct virtio_vsock_hdr){
		.src_cid = header->dst_cid,
		.dst_cid = vsock->guest_cid,
		.src_port = header->dst_port,
		.dst_port = header->src_port,
		.type = header->type,
		.op = VIRTIO_VSOCK_OP_RST,
	};
}

bool pv_vsock_send_replies(struct pv_vsock *vsock)
{
	while (vsock->reply_count > 0) {
		if (!pv_vsock_send_header(vsock, &vsock->replies[vsock->reply_first]))
			return false;
		vsock->reply_first = (vsock->reply_first + 1) % PV_VSOCK_REPLIES;
		vsock->reply_count--;
	}
	return true;
}
