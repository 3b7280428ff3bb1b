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
/* In guest memory, behind the queues; commands are behind the indirect tables. */
enum { HEADERS_AT = 0x3000, DATA_AT = 0x3100, BUFFERS_AT = 0x4000 };
enum { COMMAND_AT = 0x7000, ANSWER_AT = 0x7800 };

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
	unsigned chains[CTRL + 1]; /* that mean well, of each queue so far */
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

/* What has to be negotiated for packets of a type. */
static unsigned feature_of(uint8_t type)
{
	if (type == VIRTIO_NET_HDR_GSO_TCPV4)
		return VIRTIO_NET_F_HOST_TSO4;
	if (type == VIRTIO_NET_HDR_GSO_TCPV6)
		return VIRTIO_NET_F_HOST_TSO6;
	REQUIRE(type == VIRTIO_NET_HDR_GSO_UDP_L4);
	return VIRTIO_NET_F_HOST_USO;
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
		REQUIRE(header->gso_size > 0 && header->hdr_len <= frame && header->flags &&
		        bench->features >> feature_of(header->gso_type & 0x7f) & 1);
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

/* Offer two descriptors that follow each other. */
static void offer_pair(struct bench *bench, unsigned queue, struct pv_desc first,
                       struct pv_desc second)
{
	uint16_t head = (uint16_t)(bench->chains[queue]++ % (SIZE / 2) * 2);
	uint8_t *place = bench->driver.ram + queue * QUEUE_STEP + head * sizeof(first);

	first.flags |= PV_DESC_NEXT;
	first.next = head + 1;
	memcpy(place, &first, sizeof(first));
	memcpy(place + sizeof(first), &second, sizeof(second));
	offer(&bench->driver, queue, head);
}

/* A packet whose header means well in most of its fields, that the rest is reached. */
static void send_packet(struct bench *bench, struct input *input)
{
	static const uint8_t TYPES[] = {
		VIRTIO_NET_HDR_GSO_NONE,   VIRTIO_NET_HDR_GSO_NONE,
		VIRTIO_NET_HDR_GSO_TCPV4,  VIRTIO_NET_HDR_GSO_TCPV6,
		VIRTIO_NET_HDR_GSO_UDP_L4, VIRTIO_NET_HDR_GSO_UDP,
		VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN,
		VIRTIO_NET_HDR_GSO_UDP_L4 | VIRTIO_NET_HDR_GSO_ECN,
	};
	uint8_t choice = (uint8_t)take(input, 1);
	struct virtio_net_hdr_v1 header = {
		.flags = choice & 1 ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0,
		.gso_type = TYPES[choice >> 1 & 7],
		.gso_size = choice & 16 ? 0 : 64,
		.hdr_len = choice & 32 ? 54 : 0,
	};
	uint64_t frame = choice & 64 ? take(input, 2) : take(input, 1);
	size_t place = HEADERS_AT + bench->chains[TX] % (SIZE / 2) * 16;

	header.csum_start = (uint16_t)take(input, 1);
	header.csum_offset = (uint16_t)(take(input, 1) % 32);
	if (choice & 128)
		((uint8_t *)&header)[take(input, 1) % PV_NET_HEADER] = (uint8_t)take(input, 1);
	memcpy(bench->driver.ram + place, &header, PV_NET_HEADER);
	offer_pair(bench, TX, (struct pv_desc){place, PV_NET_HEADER, 0, 0},
	           (struct pv_desc){DATA_AT, (uint32_t)frame & 0xfff, 0, 0});
}

static void offer_buffer(struct bench *bench, struct input *input)
{
	uint64_t choice = take(input, 1);

	offer_pair(bench, RX, (struct pv_desc){BUFFERS_AT, PV_NET_HEADER, PV_DESC_WRITE, 0},
	           (struct pv_desc){BUFFERS_AT + 0x40, (uint32_t)choice * 16, PV_DESC_WRITE, 0});
}

/* A command of a class that there is, with data that may be a number, and whatever follows. */
static void send_command(struct bench *bench, struct input *input)
{
	uint8_t choice = (uint8_t)take(input, 1);
	uint32_t size = (uint32_t)take(input, choice & 0x80 ? 2 : 1) % (ANSWER_AT - COMMAND_AT - 2);
	uint8_t *data = bench->driver.ram + COMMAND_AT;

	data[0] = choice % 6;
	data[1] = choice >> 4 & 3;
	take_bytes(input, data + 2, choice & 0x40 ? 1 : size);
	if (choice & 0x40)
		memset(data + 3, 0, 3);
	offer_pair(bench, CTRL, (struct pv_desc){COMMAND_AT, 2 + size, 0, 0},
	           (struct pv_desc){ANSWER_AT, 1, PV_DESC_WRITE, 0});
}

static void instruct(struct bench *bench, struct input *input)
{
	static const int SENT[] = {0, -EAGAIN, -EINVAL, -EPIPE};
	uint8_t code = (uint8_t)take(input, 1);
	unsigned what = code % 16, queue = code / 16 % (CTRL + 1);

	switch (what) {
	case 0:
	case 1:
	case 2:
	case 3:
		drive(&bench->driver, input, what, queue);
		break;
	case 4:
	case 5:
	case 6:
		send_packet(bench, input);
		break;
	case 7:
		offer_buffer(bench, input);
		break;
	case 8:
		send_command(bench, input);
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
