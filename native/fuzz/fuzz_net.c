/* A fuzz target: the input is a driver that keeps no rule, on all three queues of a network device,
 * and a host whose packets have any length. Every fault that a sanitizer can see, an endless loop,
 * a buffer outside guest memory or a header that was not negotiated ends the run.
 *
 *     make fuzz TARGET=net
 *
 * The first bytes choose the features; then come instructions, a byte and what it takes. */
#include <errno.h>

#include "fuzz/driver.h"
#include "net/internal.h"

enum { RX, TX, CTRL };

/* Its port comes first, so that this is what the port's operations are handed. */
struct bench {
	struct pv_net_port port;
	struct driver driver;
	struct pv_net *net;
	struct pv_net_worker *worker;
	uint64_t features;
	ssize_t next; /* what `receive` is to return; 0: nothing is there */
	struct virtio_net_hdr_v1 header;
	int sent; /* what `send` is to return */
};

/* Fill the segments as a tap does, all of them in guest memory but the spill. */
static ssize_t receive(struct pv_net_port *port, const struct iovec *iov, int count)
{
	struct bench *bench = (struct bench *)port;
	size_t left = bench->next > 0 ? (size_t)bench->next : 0;
	uint8_t header[PV_NET_HEADER];
	ssize_t result = bench->next ? bench->next : -EAGAIN;

	REQUIRE(count >= 2 && count <= 1024);
	for (int i = 0; i < count; i++) {
		size_t part = iov[i].iov_len < left ? iov[i].iov_len : left;

		REQUIRE(i + 1 == count ? iov[i].iov_len >= PV_NET_HEADER + PV_NET_FRAME_MAX
		                       : inside(&bench->driver, &iov[i]));
		memset(iov[i].iov_base, 0x5a, part);
		left -= part;
	}
	REQUIRE(left == 0);
	memcpy(header, &bench->header, sizeof(header));
	for (size_t at = 0, i = 0; at < sizeof(header) && bench->next > 0; i++)
		for (size_t j = 0; j < iov[i].iov_len && at < sizeof(header); j++)
			((uint8_t *)iov[i].iov_base)[j] = header[at++];
	bench->next = 0;
	return result;
}

static void check_header(const struct bench *bench, const struct virtio_net_hdr_v1 *header,
                         uint64_t frame)
{
	REQUIRE((header->flags & ~VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0 && header->num_buffers == 0);
	if (header->flags)
		REQUIRE(bench->features & 1 && header->csum_start + header->csum_offset + 2u <= frame);
	else
		REQUIRE(header->gso_type == 0 && header->csum_start == 0 && header->csum_offset == 0);
	if (header->gso_type)
		REQUIRE(header->gso_size > 0 && header->hdr_len <= frame &&
		        (header->gso_type & 0x7f) == VIRTIO_NET_HDR_GSO_TCPV4 &&
		        bench->features & 1 << VIRTIO_NET_F_HOST_TSO4);
	if (header->gso_type & 0x80)
		REQUIRE(bench->features & 1 << VIRTIO_NET_F_HOST_ECN);
}

static int send(struct pv_net_port *port, const struct iovec *iov, int count)
{
	const struct bench *bench = (const struct bench *)port;
	uint64_t frame = 0;

	REQUIRE(count >= 2 && count <= 1024 && iov[0].iov_len == PV_NET_HEADER);
	for (int i = 1; i < count; i++) {
		REQUIRE(inside(&bench->driver, &iov[i]));
		frame += iov[i].iov_len;
	}
	REQUIRE(frame >= PV_NET_FRAME_MIN && frame <= PV_NET_FRAME_MAX);
	check_header(bench, iov[0].iov_base, frame);
	return bench->sent;
}

static void close_port(struct pv_net_port *port)
{
	(void)port;
}

static const struct pv_net_port_ops OPS = {.receive = receive, .send = send, .close = close_port};

static struct bench *bench_new(struct input *input)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	struct pv_net_config config = {.mac = {2}};

	REQUIRE(bench);
	bench->features = take(input, 4) | UINT64_C(1) << 32;
	bench->port = (struct pv_net_port){.ops = &OPS, .fd = -1};
	driver_init(&bench->driver, bench->features >> 29 & 1);
	REQUIRE(pv_net_new(&config, &bench->net) == 0);
	bench->worker = calloc(1, sizeof(*bench->worker));
	REQUIRE(bench->worker);
	bench->worker->net = bench->net;
	bench->worker->port = &bench->port;
	bench->worker->counters = bench->net->counters[0];
	bench->worker->rx.queue = make_queue(&bench->driver, RX);
	bench->worker->tx.queue = make_queue(&bench->driver, TX);
	bench->net->ctrl = make_queue(&bench->driver, CTRL);
	bench->net->features = bench->features;
	bench->net->irq = bench->driver.irq;
	pv_net_mode_init(&bench->worker->mode, config.mac, bench->features);
	bench->net->mode = bench->worker->mode;
	return bench;
}

static void bench_free(struct bench *bench)
{
	driver_destroy(&bench->driver);
	pv_net_free(bench->net);
	free(bench->worker);
	free(bench);
}

static void serve_ctrl(struct bench *bench)
{
	struct pv_virtqueue *ring = bench->driver.rings[CTRL];
	struct pv_chain *chain = &bench->worker->chain;

	while (!atomic_load(&bench->net->broken) && pv_virtqueue_pop(ring, chain) == 1) {
		if (!pv_net_command(bench->net, chain))
			return;
		pv_virtqueue_push(ring, chain->head, 1);
	}
	bench->worker->mode = bench->net->mode;
}

static void instruct(struct bench *bench, struct input *input)
{
	static const int SENT[] = {0, -EAGAIN, -EINVAL, -EPIPE};
	uint8_t code = (uint8_t)take(input, 1);
	unsigned queue = code / 16 % (CTRL + 1);
	uint8_t *ram = bench->driver.ram;
	size_t place;

	switch (code % 16) {
	case 0:
	case 1:
	case 2:
		describe(&bench->driver, input, queue);
		break;
	case 3:
		describe_indirect(&bench->driver, input);
		break;
	case 4:
	case 5:
	case 6:
		offer(&bench->driver, queue, (uint16_t)take(input, 1));
		break;
	case 7:
		place = take(input, 2) % (RAM - 8);
		ram[place] = (uint8_t)take(input, 1);
		break;
	case 8:
		for (unsigned i = 0; i < PV_NET_HEADER; i++)
			ram[(take(input, 1) * 64 + i) % RAM] = (uint8_t)take(input, 1);
		break;
	case 9:
		bench->sent = SENT[take(input, 1) % 4];
		break;
	case 10:
		bench->header.flags = (uint8_t)take(input, 1);
		bench->header.gso_type = (uint8_t)take(input, 1);
		break;
	case 11:
		serve_ctrl(bench);
		break;
	case 12:
	case 13:
		bench->next = (ssize_t)(code & 1 ? take(input, 2) + 22 : take(input, 1));
		pv_net_receive(bench->worker);
		break;
	default:
		pv_net_send(bench->worker);
	}
	REQUIRE(bench->worker->rx.stock.segment_count <= PV_NET_SEGMENTS);
	REQUIRE(bench->worker->rx.stock.buffer_count ==
	                pv_virtqueue_in_flight(bench->driver.rings[RX]) ||
	        atomic_load(&bench->net->broken));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0 && !atomic_load(&bench->net->broken))
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
