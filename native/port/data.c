/* Both directions of a port. Buffers are popped, moved together by one system call, and pushed as
 * far as they were; the others are put back into the ring, so that none is held between rounds. */
#include <errno.h>
#include <string.h>

#include "port/internal.h"

#define ROUNDS 4 /* system calls for a port and direction before others have their turn */

void pv_port_publish(struct pv_ports *ports, struct pv_virtqueue *ring)
{
	pv_virtqueue_publish(ring);
	ports->notify |= pv_virtqueue_needs_notify(ring) != 0;
}

/* What a driver may not do; NULL: it is as it should be. */
static const char *fault(const struct pv_chain *chain, bool in)
{
	if (in && chain->readable > 0)
		return "a receive buffer of a port that is to be read";
	if (in && chain->writable_bytes == 0)
		return "a receive buffer of a port without room";
	if (!in && chain->writable > 0)
		return "a transmit buffer of a port that is to be written";
	return NULL;
}

static void add_segments(struct pv_port_batch *batch, const struct pv_chain *chain, uint64_t skip)
{
	uint32_t count = (uint32_t)chain->readable + chain->writable;

	for (uint32_t i = 0; i < count && batch->bytes < PV_PORT_BATCH; i++) {
		struct iovec piece = chain->iov[i];
		size_t left = PV_PORT_BATCH - batch->bytes;

		if (skip >= piece.iov_len) {
			skip -= piece.iov_len;
			continue;
		}
		piece.iov_base = (char *)piece.iov_base + skip;
		piece.iov_len -= skip;
		skip = 0;
		if (piece.iov_len > left)
			piece.iov_len = left;
		batch->iov[batch->segments++] = piece;
		batch->bytes += piece.iov_len;
	}
}

/* Pop some buffers, all but the first `skip` bytes of which are to be moved. False: there are
 * none, or the device is broken. */
static bool gather(struct pv_ports *ports, struct pv_virtqueue *ring, bool in, uint64_t skip)
{
	struct pv_port_batch *batch = &ports->batch;
	struct pv_chain *chain = &ports->chain;
	uint64_t end = 0;

	batch->chains = batch->segments = 0;
	batch->bytes = 0;
	while (batch->chains < PV_PORT_CHAINS && batch->bytes < PV_PORT_BATCH) {
		int result = pv_virtqueue_pop(ring, chain);
		const char *why = result < 0 ? pv_virtqueue_error(ring)
		                : result > 0 ? fault(chain, in)
		                             : NULL;

		if (why)
			pv_port_break(ports, why);
		if (result <= 0 || why)
			break;
		if ((uint32_t)chain->readable + chain->writable >
		    PV_PORT_SEGMENTS - batch->segments)
			break;
		add_segments(batch, chain, skip);
		/* What was taken of a buffer that has shrunk since is all of it. */
		end += chain->readable_bytes + chain->writable_bytes;
		end = end > skip ? end - skip : 0;
		skip = 0;
		batch->chain[batch->chains].head = chain->head;
		batch->chain[batch->chains++].end = end;
	}
	return !ports->broken && batch->chains > 0;
}

/* Complete the buffers whose bytes are among the first `moved`, and one to read that is filled in
 * part; put the others back. The bytes moved of the first of these. */
static uint64_t complete(struct pv_ports *ports, struct pv_virtqueue *ring, bool in, uint64_t moved)
{
	struct pv_port_batch *batch = &ports->batch;
	uint64_t start = 0;

	for (batch->completed = 0; batch->completed < batch->chains; batch->completed++) {
		uint64_t end = batch->chain[batch->completed].end;

		if (end > moved && (!in || start == moved))
			break;
		if (end > moved)
			end = moved;
		pv_virtqueue_push(ring, batch->chain[batch->completed].head,
		                  in ? (uint32_t)(end - start) : 0);
		start = end;
	}
	pv_virtqueue_rewind(ring);
	return moved - start;
}

/* Bytes that one system call read into the batch; -EAGAIN, another -errno, or 0 for the end. */
static int64_t read_some(struct pv_port *port, const struct pv_port_batch *batch)
{
	if (port->flags & PV_PORT_ESCAPE)
		return pv_port_read_keys(port, batch);
	return pv_stream_readv(&port->in, batch->iov, batch->segments);
}

/* Wait for buffers; true: there are some now. */
static bool wait_for_buffers(struct pv_virtqueue *ring, enum pv_port_wait *wait)
{
	*wait = PV_PORT_KICK;
	return pv_virtqueue_enable_kicks(ring) != 0;
}

static bool wait_to_receive(struct pv_ports *ports, struct pv_port *port)
{
	/* A driver that takes what it got gives several back soon, without a kick for each. */
	if (port->flows) {
		port->flows = false;
		port->in_wait = PV_PORT_NAP;
		return false;
	}
	if (wait_for_buffers(port->queues.in.ring, &port->in_wait))
		return true;
	pv_port_count(ports, PV_PORT_STARVED, 1);
	/* The end of what it said needs no buffer. */
	if (port->hung_up)
		pv_port_peer_closed(ports, port);
	return false;
}

/* Nothing was read for a reason. */
static void no_input(struct pv_ports *ports, struct pv_port *port, int64_t error)
{
	/* A terminal whose foreground is another job, or a pty that nobody has open. */
	if (error == -EIO && !port->socket)
		pv_port_leave(ports, port);
	else if (error != -EAGAIN)
		pv_port_hang_up(ports, port);
}

static bool receive_some(struct pv_ports *ports, struct pv_port *port)
{
	struct pv_virtqueue *ring = port->queues.in.ring;
	int64_t bytes;

	if (!gather(ports, ring, true, 0))
		return !ports->broken && wait_to_receive(ports, port);
	bytes = read_some(port, &ports->batch);
	complete(ports, ring, true, bytes > 0 ? (uint64_t)bytes : 0);
	port->in_wait = PV_PORT_HOST;
	port->flows = bytes > 0;
	if (bytes <= 0) {
		no_input(ports, port, bytes);
		return false;
	}
	pv_port_count(ports, PV_PORT_BYTES_IN, (uint64_t)bytes);
	pv_port_see_size(ports, port);
	/* Less than there was room for is all that there was. */
	return (uint64_t)bytes == ports->batch.bytes;
}

void pv_port_receive(struct pv_ports *ports, struct pv_port *port)
{
	struct pv_virtqueue *ring = port->queues.in.ring;

	if (port->in.fd < 0 || !atomic_load(&port->open) || !ring) {
		port->in_wait = PV_PORT_IDLE;
		return;
	}
	port->in_wait = PV_PORT_MORE;
	pv_virtqueue_disable_kicks(ring);
	for (uint32_t i = 0; i < ROUNDS && receive_some(ports, port); i++)
		port->in_wait = PV_PORT_MORE;
	pv_port_publish(ports, ring);
}

/* What a host's end that is full does not take stays, but for a console's of whom nothing has been
 * taken for long. */
static uint64_t hold_back(struct pv_ports *ports, struct pv_port *port)
{
	if (port->impatient) {
		pv_port_count(ports, PV_PORT_DROPPED, ports->batch.bytes);
		return ports->batch.bytes;
	}
	if (port->blocked_at == 0)
		port->blocked_at = pv_now_ns();
	return 0;
}

/* Bytes of the batch that are done with: that the host's end took, or that nobody will. */
static uint64_t hand_over(struct pv_ports *ports, struct pv_port *port)
{
	struct pv_port_batch *batch = &ports->batch;

	if (batch->bytes == 0)
		return 0;
	if (port->out.fd >= 0 && atomic_load(&port->there)) {
		int64_t bytes = pv_stream_writev(&port->out, batch->iov, batch->segments);

		if (bytes == -EAGAIN || bytes == -ENOBUFS || bytes == -ENOMEM)
			return hold_back(ports, port);
		if (bytes >= 0) {
			port->blocked_at = 0;
			port->impatient = false;
			pv_port_count(ports, PV_PORT_BYTES_OUT, (uint64_t)bytes);
			return (uint64_t)bytes;
		}
		pv_stream_close(&port->out);
	}
	pv_port_count(ports, PV_PORT_DROPPED, batch->bytes);
	return batch->bytes;
}

static bool send_some(struct pv_ports *ports, struct pv_port *port)
{
	struct pv_virtqueue *ring = port->queues.out.ring;
	uint64_t moved, part;

	if (!gather(ports, ring, false, port->taken))
		return !ports->broken && wait_for_buffers(ring, &port->out_wait);
	moved = hand_over(ports, port);
	part = complete(ports, ring, false, moved);
	port->taken = (ports->batch.completed > 0 ? 0 : port->taken) + part;
	if (moved == ports->batch.bytes)
		return true;
	pv_port_count(ports, PV_PORT_BLOCKED, 1);
	if (port->blocked_at == 0)
		port->blocked_at = pv_now_ns();
	port->out_wait = PV_PORT_HOST;
	return false;
}

void pv_port_send(struct pv_ports *ports, struct pv_port *port)
{
	struct pv_virtqueue *ring = port->queues.out.ring;

	pv_virtqueue_disable_kicks(ring);
	for (uint32_t i = 0; i < ROUNDS && send_some(ports, port); i++)
		port->out_wait = PV_PORT_MORE;
	pv_port_publish(ports, ring);
}
