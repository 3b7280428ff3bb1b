/* Any packet of a driver's to a socket: the copy of its header, and its credit, on a connection in
 * any state. */
#include "proofs/chain_model.h"

#include "virtio/iov.c"
#include "vsock/tx.c"

static struct pv_vsock vsock;
static struct pv_vsock_conn conn;
static uint32_t delivered;

uint32_t pv_vsock_credit(const struct pv_vsock_conn *of)
{
	return PV_ANY(0, UINT32_MAX);
}

void pv_vsock_set_deadline(struct pv_vsock *of, struct pv_vsock_conn *timed, uint64_t span_ns)
{
}

void pv_vsock_enqueue(struct pv_vsock *of, struct pv_vsock_conn *queued)
{
}

void pv_vsock_settle(struct pv_vsock *of, struct pv_vsock_conn *settled)
{
}

void pv_vsock_deliver(struct pv_vsock *of, struct pv_vsock_conn *to, uint32_t length)
{
	/*@ assert has_room: length <= to->room - to->held; */
	delivered = length;
}

static void add(unsigned first, unsigned second, unsigned writable)
{
	static const uint32_t lengths[] = {1, 43, 44, 45, 60};

	if (first > 0)
		pv_add_readable(&vsock.chain, lengths[first - 1]);
	if (second > 0)
		pv_add_readable(&vsock.chain, lengths[second - 1]);
	if (writable > 0)
		pv_add_writable(&vsock.chain, 1);
}

static void any_conn(unsigned halves)
{
	conn.room = 1u << 16;
	conn.held = halves * (conn.room / 2);
	conn.sent = PV_ANY(0, UINT32_MAX);
	conn.peer_forwarded = PV_ANY(0, UINT32_MAX);
	conn.guest_shut = (uint8_t)PV_ANY(0, UINT8_MAX);
	conn.stalled = PV_ANY_BOOL();
	conn.heard_out = PV_ANY_BOOL();
	conn.fd = Frama_C_interval(0, 1023);
}

int main(void)
{
	unsigned first = pv_each(5), second = pv_each(5), writable = pv_each(1), halves = pv_each(2);
	struct virtio_vsock_hdr header;

	pv_begin_chain(&vsock.chain);
	add(first, second, writable);
	any_conn(halves);
	if (!read_header(&vsock.chain, &header)) {
		/*@ assert in_buffer: header.len <= vsock.chain.readable_bytes - sizeof(header); */
		if (is_sound(&vsock, &header))
			(void)on_open(&vsock, &conn, &header);
	}
	return 0;
}
