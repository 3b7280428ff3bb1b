/* From the driver to the host: packets are written straight from its buffers, but for their
 * headers, of which a private copy is checked and sent. */
#include <errno.h>
#include <string.h>

#include "net/internal.h"
#include "virtio/iov_internal.h"

#define PACKETS 64 /* in a row, at most, and */
#define BYTES (512 * 1024)

static bool is_gso_offered(uint64_t features, uint8_t type)
{
	switch (type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_TCPV4:
		if (!PV_HAS(features, VIRTIO_NET_F_HOST_TSO4))
			return false;
		break;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		if (!PV_HAS(features, VIRTIO_NET_F_HOST_TSO6))
			return false;
		break;
	case VIRTIO_NET_HDR_GSO_UDP_L4:
		return PV_HAS(features, VIRTIO_NET_F_HOST_USO) && !(type & VIRTIO_NET_HDR_GSO_ECN);
	default:
		return false;
	}
	return !(type & VIRTIO_NET_HDR_GSO_ECN) || PV_HAS(features, VIRTIO_NET_F_HOST_ECN);
}

/* Whether the header asks for nothing that was not negotiated or lies outside its frame (5.1.6.2);
 * what has no meaning in it is cleared. */
static bool check_header(uint64_t features, struct virtio_net_hdr_v1 *header, uint64_t frame)
{
	bool has_csum = (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
	uint64_t csum_end = (uint64_t)header->csum_start + header->csum_offset + 2;

	if (has_csum && (!PV_HAS(features, VIRTIO_NET_F_CSUM) || csum_end > frame))
		return false;
	if (header->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
		if (!has_csum || header->gso_size == 0 || header->hdr_len > frame ||
		    !is_gso_offered(features, header->gso_type))
			return false;
	} else {
		header->gso_size = header->hdr_len = 0;
	}
	if (!has_csum)
		header->csum_start = header->csum_offset = 0;
	header->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
	header->num_buffers = 0;
	return true;
}

/* Make the segments to write of the chain's; false: they are too many. */
static bool take_frame(struct pv_net_tx *tx)
{
	size_t skip = PV_NET_HEADER;

	tx->iov[0] = (struct iovec){&tx->header, PV_NET_HEADER};
	tx->count = 1;
	for (uint32_t i = 0; i < tx->chain.readable; i++) {
		const struct iovec *iov = &tx->chain.iov[i];

		if (skip >= iov->iov_len) {
			skip -= iov->iov_len;
			continue;
		}
		if (tx->count > PV_NET_SEGMENTS)
			return false;
		tx->iov[tx->count++] =
			(struct iovec){(char *)iov->iov_base + skip, iov->iov_len - skip};
		skip = 0;
	}
	return true;
}

static void complete(struct pv_net_worker *w)
{
	pv_virtqueue_push(w->tx.queue.ring, w->tx.chain.head, 0);
	w->tx.held = false;
	w->pushed = true;
}

/* Hold the packet of the chain that was popped, if it is one. */
static void hold(struct pv_net_worker *w)
{
	struct pv_net_tx *tx = &w->tx;
	const struct pv_chain *chain = &tx->chain;

	if (chain->writable > 0 || chain->readable_bytes < PV_NET_HEADER) {
		pv_net_break(w->net, chain->writable > 0
		                             ? "a packet to send with a part that can be written"
		                             : "a packet to send without a whole header");
		return;
	}
	tx->held = true;
	tx->bytes = chain->readable_bytes - PV_NET_HEADER;
	pv_iov_gather(chain->iov, chain->readable, 0, &tx->header, PV_NET_HEADER);
	if (tx->bytes >= PV_NET_FRAME_MIN && tx->bytes <= PV_NET_FRAME_MAX && take_frame(tx) &&
	    check_header(w->net->features, &tx->header, tx->bytes)) {
		if (pv_net_is_lost(w, PV_FAULT_TX))
			complete(w);
		return;
	}
	pv_net_count(w, PV_TX_MALFORMED, 1);
	complete(w);
}

/* Take the driver's next chain; false: there is none, or it broke the rules. */
static bool take(struct pv_net_worker *w)
{
	struct pv_net_tx *tx = &w->tx;
	int result;

	do
		result = pv_virtqueue_pop(tx->queue.ring, &tx->chain);
	while (result == 0 && pv_virtqueue_enable_kicks(tx->queue.ring));
	if (result > 0)
		hold(w);
	else if (result < 0)
		pv_net_break(w->net, pv_virtqueue_error(tx->queue.ring));
	tx->wait = atomic_load(&w->net->broken) ? PV_WAIT_GONE : PV_WAIT_KICK;
	return result > 0 && tx->wait == PV_WAIT_KICK;
}

static bool has_link(const struct pv_net_worker *w)
{
	return w->port->ops && !w->lost &&
	       atomic_load_explicit(&w->net->link, memory_order_relaxed);
}

/* Send the packet that is held, or drop it; false: the host takes none now. */
static bool transmit(struct pv_net_worker *w)
{
	struct pv_net_tx *tx = &w->tx;
	int result = w->port->ops->send(w->port, tx->iov, (int)tx->count);

	if (result == -EAGAIN) {
		if (tx->wait != PV_WAIT_PORT)
			pv_net_count(w, PV_TX_BLOCKED, 1);
		tx->wait = PV_WAIT_PORT;
		return false;
	}
	if (result == 0) {
		pv_net_count(w, PV_TX_PACKETS, 1);
		pv_net_count(w, PV_TX_BYTES, tx->bytes);
		pv_net_limit_charge(&w->net->tx_limit, tx->bytes);
	} else {
		pv_net_count(w, PV_TX_ERRORS, 1);
	}
	if (result == -EPIPE)
		pv_net_lose(w);
	complete(w);
	return true;
}

/* Get rid of the packet that is held; false: it has to wait, and `wait` says for what. */
static bool serve(struct pv_net_worker *w)
{
	struct pv_net_tx *tx = &w->tx;

	if (!has_link(w)) {
		pv_net_count(w, PV_TX_NO_LINK, 1);
		complete(w);
		return true;
	}
	tx->delay_ns = pv_net_limit_delay(&w->net->tx_limit);
	if (tx->delay_ns > 0) {
		if (tx->wait != PV_WAIT_TIME)
			pv_net_count(w, PV_TX_THROTTLED, 1);
		tx->wait = PV_WAIT_TIME;
		return false;
	}
	return transmit(w);
}

void pv_net_send(struct pv_net_worker *w)
{
	struct pv_net_tx *tx = &w->tx;
	uint64_t total = 0;

	pv_virtqueue_disable_kicks(tx->queue.ring);
	for (uint32_t packets = 0; packets < PACKETS && total < BYTES; packets++) {
		if (!tx->held && !take(w))
			return;
		if (!tx->held)
			continue; /* it was malformed, or a fault took it */
		if (!serve(w))
			return;
		total += tx->bytes;
	}
	tx->wait = PV_WAIT_NONE;
}
