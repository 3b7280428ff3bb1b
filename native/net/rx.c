/* From the host to the driver: packets are read straight into its receive buffers.
 *
 * Nobody says how large the next packet is. So some buffers are taken ahead, the stock, and behind
 * them each read has room of our own, the spill: a packet always fits, and the part of it that is
 * found in the spill is copied into more of the driver's buffers, now or when it offers them. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "net/internal.h"
#include "virtio/iov_internal.h"

#define PACKETS 64 /* in a row, at most, and */
#define BYTES (512 * 1024)
#define LARGE_FOR 64 /* packets */
/* One in so many packets that came alone is followed by a look for another one. */
#define LOOKS 8

/* Segments in the stock, at most: for packets of one buffer; with the spill as many as readv(2) takes
 * without allocating; for any packet. */
static const uint16_t STOCKS[] = {1, 7, PV_NET_SEGMENTS};
enum { LARGEST = sizeof(STOCKS) / sizeof(STOCKS[0]) - 1 };

static void compact(struct pv_net_stock *stock)
{
	memmove(stock->buffers, stock->buffers + stock->first_buffer,
	        stock->buffer_count * sizeof(stock->buffers[0]));
	memmove(stock->iov, stock->iov + stock->first_segment,
	        stock->segment_count * sizeof(stock->iov[0]));
	stock->first_buffer = stock->first_segment = 0;
}

/* Only as much of the chain as PV_NET_SEGMENTS leave room for. */
static void add(struct pv_net_stock *stock, const struct pv_chain *chain)
{
	uint32_t room = PV_NET_SEGMENTS - stock->segment_count;
	uint16_t segments = chain->writable < room ? chain->writable : (uint16_t)room;
	struct pv_net_buffer *buffer;
	struct iovec *iov;
	uint64_t bytes = 0;

	if (stock->first_segment + stock->segment_count + segments > 2 * PV_NET_SEGMENTS)
		compact(stock);
	iov = &stock->iov[stock->first_segment + stock->segment_count];
	for (uint32_t i = 0; i < segments; i++) {
		iov[i] = chain->iov[i];
		bytes += iov[i].iov_len;
	}
	/* More than any packet has is of no use, and 2^32 would not fit. */
	if (bytes > UINT32_MAX)
		bytes = UINT32_MAX;
	buffer = &stock->buffers[stock->first_buffer + stock->buffer_count++];
	*buffer = (struct pv_net_buffer){chain->head, segments, (uint32_t)bytes};
	stock->segment_count += segments;
	stock->bytes += bytes;
}

static void drop_first(struct pv_net_stock *stock)
{
	const struct pv_net_buffer *buffer = &stock->buffers[stock->first_buffer];

	stock->first_buffer++;
	stock->buffer_count--;
	stock->first_segment += buffer->segments;
	stock->segment_count -= buffer->segments;
	stock->bytes -= buffer->bytes;
	if (stock->buffer_count == 0)
		stock->first_buffer = stock->first_segment = 0;
}

/* Take the driver's next buffer; false: there is none, or it broke the rules. */
static bool take(struct pv_net_worker *w)
{
	struct pv_chain *chain = &w->chain;
	int result = pv_virtqueue_pop(w->rx.queue.ring, chain);

	if (result < 0)
		pv_net_break(w->net, pv_virtqueue_error(w->rx.queue.ring));
	if (result <= 0)
		return false;
	if (chain->readable > 0 || chain->writable_bytes < PV_NET_HEADER) {
		pv_net_break(w->net, chain->readable > 0
		                             ? "a receive buffer with a part that cannot be written"
		                             : "a receive buffer smaller than a packet's header");
		return false;
	}
	add(&w->rx.stock, chain);
	return true;
}

/* As `take`; when there is none, the driver is asked to tell when it offers one. */
static bool take_or_ask(struct pv_net_worker *w)
{
	do {
		if (take(w))
			return true;
		if (atomic_load(&w->net->broken))
			return false;
	} while (pv_virtqueue_enable_kicks(w->rx.queue.ring));
	return false;
}

static bool is_mergeable(const struct pv_net_worker *w)
{
	return PV_HAS(w->net->features, VIRTIO_NET_F_MRG_RXBUF);
}

/* Have buffers for a packet of the size that is usual now; false: not one. */
static bool stock_up(struct pv_net_worker *w)
{
	struct pv_net_rx *rx = &w->rx;
	struct pv_net_stock *stock = &rx->stock;
	uint32_t segments = STOCKS[rx->large];
	uint64_t bytes = is_mergeable(w) ? PV_NET_HEADER + PV_NET_FRAME_MAX : 1;

	while (stock->bytes < bytes && stock->segment_count < segments && take(w))
		;
	if (stock->buffer_count > 0 || take_or_ask(w))
		return true;
	if (!atomic_load(&w->net->broken) && rx->wait != PV_WAIT_KICK)
		pv_net_count(w, PV_RX_STARVED, 1);
	return false;
}

/* The rest of the header is the host's. A driver that checks checksums itself is told of none. */
static void finish_header(const struct pv_net_worker *w, uint16_t buffers)
{
	static const uint8_t NO_FLAGS = 0;
	const struct pv_net_stock *stock = &w->rx.stock;
	const struct iovec *iov = &stock->iov[stock->first_segment];

	pv_iov_scatter(iov, stock->segment_count,
	               offsetof(struct virtio_net_hdr_v1, num_buffers), &buffers,
	               sizeof(buffers));
	if (!(w->mode.offloads & TUN_F_CSUM))
		pv_iov_scatter(iov, stock->segment_count,
		               offsetof(struct virtio_net_hdr_v1, flags), &NO_FLAGS,
		               sizeof(NO_FLAGS));
}

/* Give the driver the packet of so many bytes that the first buffers of the stock hold. */
static void deliver(struct pv_net_worker *w, size_t bytes)
{
	struct pv_net_stock *stock = &w->rx.stock;
	size_t left = bytes;
	uint16_t used = 0;

	for (size_t covered = 0; covered < bytes; used++)
		covered += stock->buffers[stock->first_buffer + used].bytes;
	finish_header(w, used);
	for (; used > 0; used--) {
		const struct pv_net_buffer *buffer = &stock->buffers[stock->first_buffer];
		uint32_t part = left < buffer->bytes ? (uint32_t)left : buffer->bytes;

		pv_virtqueue_push(w->rx.queue.ring, buffer->head, part);
		left -= part;
		drop_first(stock);
	}
	w->pushed = true;
	pv_net_count(w, PV_RX_PACKETS, 1);
	pv_net_count(w, PV_RX_BYTES, bytes - PV_NET_HEADER);
}

/* Bring what is in the spill into more buffers and deliver; false: the driver has to offer more. */
static bool finish_held(struct pv_net_worker *w)
{
	struct pv_net_rx *rx = &w->rx;
	struct pv_net_stock *stock = &rx->stock;

	while (stock->bytes < rx->held) {
		bool is_full = stock->segment_count == PV_NET_SEGMENTS || !is_mergeable(w);

		if (!is_full && take_or_ask(w))
			continue;
		if (atomic_load(&w->net->broken))
			return false;
		if (!is_full && pv_virtqueue_in_flight(rx->queue.ring) < pv_virtqueue_size(rx->queue.ring))
			return false;
		pv_net_count(w, PV_RX_NO_ROOM, 1);
		rx->held = 0;
		return true;
	}
	pv_iov_scatter(&stock->iov[stock->first_segment], stock->segment_count, rx->held_in,
	               rx->spill, rx->held - rx->held_in);
	deliver(w, rx->held);
	rx->held = 0;
	return true;
}

/* Whether the driver is to have the packet that was read. */
static bool is_wanted(struct pv_net_worker *w, size_t bytes)
{
	const struct pv_net_stock *stock = &w->rx.stock;
	struct {
		struct virtio_net_hdr_v1 header;
		uint8_t frame[PV_NET_PEEK];
	} start = {0};

	if (bytes < PV_NET_HEADER + PV_NET_FRAME_MIN) {
		pv_net_count(w, PV_RX_ERRORS, 1);
		return false;
	}
	if (!atomic_load_explicit(&w->net->link, memory_order_relaxed)) {
		pv_net_count(w, PV_RX_NO_LINK, 1);
		return false;
	}
	/* One segment more: the spill, which is behind the stock still. */
	pv_iov_gather(&stock->iov[stock->first_segment], stock->segment_count + 1, 0, &start,
	              sizeof(start));
	if (!pv_net_mode_fits(&w->mode, &start.header)) {
		pv_net_count(w, PV_RX_UNFIT, 1);
		return false;
	}
	if (!pv_net_mode_wants(&w->mode, start.frame)) {
		pv_net_count(w, PV_RX_FILTERED, 1);
		return false;
	}
	return true;
}

/* Read a packet; its length, or -errno. */
static ssize_t read_packet(struct pv_net_worker *w)
{
	struct pv_net_rx *rx = &w->rx;
	struct pv_net_stock *stock = &rx->stock;
	struct iovec *iov = &stock->iov[stock->first_segment];

	iov[stock->segment_count] = (struct iovec){rx->spill, sizeof(rx->spill)};
	return w->port->ops->receive(w->port, iov, (int)stock->segment_count + 1);
}

static bool has_room(const struct pv_net_stock *stock, uint32_t segments, size_t bytes)
{
	size_t room = 0;

	for (uint32_t i = 0; i < segments && i < stock->segment_count; i++)
		room += stock->iov[stock->first_segment + i].iov_len;
	return room >= bytes;
}

/* A larger stock for a packet that was too large; a smaller one after many that were not. */
static void adapt(struct pv_net_rx *rx, size_t bytes)
{
	if (bytes > rx->stock.bytes) {
		rx->large += rx->large < LARGEST;
		rx->smaller = 0;
	} else if (rx->large > 0) {
		rx->smaller = has_room(&rx->stock, STOCKS[rx->large - 1], bytes) ? rx->smaller + 1 : 0;
		if (rx->smaller == LARGE_FOR) {
			rx->large--;
			rx->smaller = 0;
		}
	}
}

/* Take one packet from the host to the driver, or drop it; its bytes, 0: nothing can be done now,
 * and `wait` says until when. */
static size_t receive(struct pv_net_worker *w)
{
	struct pv_net_rx *rx = &w->rx;
	ssize_t bytes;

	if ((rx->held > 0 && !finish_held(w)) || !stock_up(w)) {
		rx->wait = atomic_load(&w->net->broken) ? PV_WAIT_GONE : PV_WAIT_KICK;
		return 0;
	}
	bytes = read_packet(w);
	if (bytes == -EAGAIN) {
		rx->wait = PV_WAIT_PORT;
		return 0;
	}
	if (bytes == -EPIPE) {
		pv_net_lose(w);
		rx->wait = PV_WAIT_GONE;
		return 0;
	}
	if (bytes < 0) {
		pv_net_count(w, PV_RX_ERRORS, 1);
		return 1;
	}
	if (is_wanted(w, (size_t)bytes) && !pv_net_is_lost(w, PV_FAULT_RX)) {
		adapt(rx, (size_t)bytes);
		pv_net_limit_charge(&w->net->rx_limit, (size_t)bytes - PV_NET_HEADER);
		if ((uint64_t)bytes <= rx->stock.bytes) {
			deliver(w, (size_t)bytes);
		} else {
			rx->held = (size_t)bytes;
			rx->held_in = rx->stock.bytes;
		}
	}
	return (size_t)bytes;
}

/* Where packets come one by one, a look for the next one is in vain. Should there be one, poll(2) says
 * so at once; a shared thread is told of news alone. */
static bool is_alone(struct pv_net_worker *w)
{
	struct pv_net_rx *rx = &w->rx;

	if (w->shared || w->port->ops->reads_ahead || rx->held > 0 || rx->alone % LOOKS == 0)
		return false;
	rx->alone++;
	rx->wait = PV_WAIT_PORT;
	return true;
}

static void learn(struct pv_net_rx *rx, uint32_t packets)
{
	if (packets > 1)
		rx->alone = 0;
	else if (packets == 1 && rx->wait == PV_WAIT_PORT)
		rx->alone++;
}

void pv_net_receive(struct pv_net_worker *w)
{
	struct pv_net_rx *rx = &w->rx;
	size_t bytes, total = 0;

	pv_virtqueue_disable_kicks(rx->queue.ring);
	for (uint32_t packets = 0; packets < PACKETS && total < BYTES; packets++) {
		if (!w->port->ops || w->lost) {
			rx->wait = PV_WAIT_GONE;
			return;
		}
		if (packets == 1 && is_alone(w))
			return;
		rx->delay_ns = pv_net_limit_delay(&w->net->rx_limit);
		if (rx->delay_ns > 0) {
			if (rx->wait != PV_WAIT_TIME)
				pv_net_count(w, PV_RX_THROTTLED, 1);
			rx->wait = PV_WAIT_TIME;
			return;
		}
		bytes = receive(w);
		if (bytes == 0) {
			learn(rx, packets);
			return;
		}
		total += bytes;
	}
	rx->alone = 0;
	rx->wait = PV_WAIT_NONE;
}
