/* Any packet that a driver sends, in up to three segments: the copy of its header, the checks of
 * it, and the segments that the host writes from. */
#include "proofs/chain_model.h"

#include "net/tx.c"
#include "virtio/iov.c"

static struct pv_net net;
static struct pv_net_worker worker;

void pv_net_break(struct pv_net *broken, const char *why)
{
	broken->broken = true;
}

void pv_net_count(struct pv_net_worker *w, enum pv_net_counter counter, uint64_t more)
{
}

bool pv_net_is_lost(struct pv_net_worker *w, uint32_t op)
{
	return PV_ANY_BOOL();
}

int pv_virtqueue_push(struct pv_virtqueue *ring, uint16_t head, uint32_t written)
{
	return 0;
}

static void add(unsigned first, unsigned second, unsigned writable)
{
	static const uint32_t lengths[] = {1, 11, 12, 26, 60};

	if (first > 0)
		pv_add_readable(&worker.tx.chain, lengths[first - 1]);
	if (second > 0)
		pv_add_readable(&worker.tx.chain, lengths[second - 1]);
	if (writable > 0)
		pv_add_writable(&worker.tx.chain, 1);
}

/* What the host's kernel would read. */
static uint8_t read_frame(const struct pv_net_tx *tx)
{
	uint8_t byte = 0;

	for (uint32_t i = 1; i < tx->count; i++)
		byte ^= ((const uint8_t *)tx->iov[i].iov_base)[0] ^
		        ((const uint8_t *)tx->iov[i].iov_base)[tx->iov[i].iov_len - 1];
	return byte;
}

static void check(void)
{
	struct virtio_net_hdr_v1 header;
	uint64_t frame = PV_ANY(0, PV_NET_FRAME_MAX);

	PV_UNKNOWN(header);
	if (check_header(net.features, &header, frame)) {
		/*@ assert flags: header.flags == 0 || header.flags == VIRTIO_NET_HDR_F_NEEDS_CSUM; */
		/*@ assert buffers: header.num_buffers == 0; */
	}
}

int main(void)
{
	unsigned first = pv_each(5), second = pv_each(5), writable = pv_each(1);

	net.features = Frama_C_unsigned_long_long_interval(0, UINT64_MAX);
	worker.net = &net;
	pv_begin_chain(&worker.tx.chain);
	add(first, second, writable);
	hold(&worker);
	if (worker.tx.held)
		(void)read_frame(&worker.tx);
	check();
	return 0;
}
