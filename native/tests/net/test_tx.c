/* Packets from the driver to the host. */
#include "tests/net/bench.h"

enum { ROOM = PV_NET_HEADER + PV_NET_FRAME_MAX + 1 };

static uint8_t frame[PV_NET_FRAME_MAX + 1], packet[ROOM];
static const struct virtio_net_hdr_v1 PLAIN = {0};
static const struct virtio_net_hdr_v1 CSUM = {
	.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
static const struct virtio_net_hdr_v1 TSO4 = {
	.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
	.gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
	.hdr_len = 54,
	.gso_size = 1460,
	.csum_start = 34,
	.csum_offset = 16,
};
#define ALL                                                                                        \
	(F(CSUM) | F(HOST_TSO4) | F(HOST_TSO6) | F(HOST_ECN) |                                     \
	 UINT64_C(1) << VIRTIO_NET_F_HOST_USO)

static void test_a_packet_reaches_the_host(void)
{
	struct bench b;

	bench_run(&b, 0);
	make_frame(frame, 1514, 2);
	offer_packet(&b, 0, PLAIN, frame, 1514);
	CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + 1514);
	CHECK_EQ(memcmp(packet, &PLAIN, PV_NET_HEADER), 0);
	CHECK_EQ(memcmp(packet + PV_NET_HEADER, frame, 1514), 0);
	WAIT_FOR(used(&b.queues[TX]) == 1);
	CHECK_EQ(written(&b.queues[TX], 0), 0);
	CHECK(readable(b.guest.irq_fd, 10000));
	CHECK_EQ(STAT(&b, tx_packets), 1);
	CHECK_EQ(STAT(&b, tx_bytes), 1514);
	bench_unmake(&b);
}

static void test_header_and_frame_split_anyhow(void)
{
	static const uint32_t CUTS[][4] = {{12, 0, 0, 0}, {1, 0, 0, 0}, {5, 7, 0, 0},
	                                   {5, 6, 2, 0},  {13, 1, 1, 1}, {20, 40, 0, 0}};
	struct bench b;

	bench_run(&b, ALL);
	make_frame(frame, 300, 4);
	memcpy(data_at(&b, 0), &CSUM, PV_NET_HEADER);
	memcpy(data_at(&b, PV_NET_HEADER), frame, 300);
	for (unsigned i = 0; i < sizeof(CUTS) / sizeof(CUTS[0]); i++) {
		struct part parts[5];
		uint32_t at = 0;
		unsigned count = 0;

		for (; count < 4 && CUTS[i][count]; count++) {
			parts[count] = (struct part){at, CUTS[i][count], false};
			at += CUTS[i][count];
		}
		parts[count++] = (struct part){at, PV_NET_HEADER + 300 - at, false};
		offer(&b.queues[TX], parts, count);
		CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + 300);
		CHECK_EQ(memcmp(packet, &CSUM, PV_NET_HEADER), 0);
		CHECK_EQ(memcmp(packet + PV_NET_HEADER, frame, 300), 0);
		WAIT_FOR(used(&b.queues[TX]) == i + 1);
	}
	bench_unmake(&b);
}

/* Offer a packet of 2000 bytes with this header; whether it is sent, and as what. */
static bool is_sent(struct bench *b, struct virtio_net_hdr_v1 header,
                    struct virtio_net_hdr_v1 *sent)
{
	uint64_t malformed = STAT(b, tx_malformed);
	uint16_t before = used(&b->queues[TX]);
	bool is_malformed;

	make_frame(frame, 2000, 1);
	offer_packet(b, 0, header, frame, 2000);
	WAIT_FOR(used(&b->queues[TX]) == (uint16_t)(before + 1));
	is_malformed = STAT(b, tx_malformed) == malformed + 1;
	CHECK_EQ(is_malformed, !readable(b->host[0], 0));
	if (is_malformed)
		return false;
	CHECK_EQ(host_gets(b, packet, ROOM), PV_NET_HEADER + 2000);
	memcpy(sent, packet, PV_NET_HEADER);
	return true;
}

/* What each header is made of, the features that it needs, and whether it is well-formed. */
static void test_headers_are_held_to_what_was_negotiated(void)
{
	static const struct {
		uint8_t flags, gso_type;
		uint64_t features; /* all of them are needed */
	} HEADERS[] = {
		{0, 0, 0},
		{1, 0, F(CSUM)},
		{1, VIRTIO_NET_HDR_GSO_TCPV4, F(CSUM) | F(HOST_TSO4)},
		{1, VIRTIO_NET_HDR_GSO_TCPV6, F(CSUM) | F(HOST_TSO6)},
		{1, VIRTIO_NET_HDR_GSO_UDP_L4, F(CSUM) | UINT64_C(1) << VIRTIO_NET_F_HOST_USO},
		{1, VIRTIO_NET_HDR_GSO_TCPV4 | 0x80, F(CSUM) | F(HOST_TSO4) | F(HOST_ECN)},
		{1, VIRTIO_NET_HDR_GSO_TCPV6 | 0x80, F(CSUM) | F(HOST_TSO6) | F(HOST_ECN)},
	};
	struct virtio_net_hdr_v1 sent;
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	for (unsigned i = 0; i < sizeof(HEADERS) / sizeof(HEADERS[0]); i++) {
		struct virtio_net_hdr_v1 header = TSO4;

		header.flags = HEADERS[i].flags;
		header.gso_type = HEADERS[i].gso_type;
		bench_start(&b, ALL, 1);
		CHECK(is_sent(&b, header, &sent));
		CHECK_EQ(sent.flags, header.flags);
		CHECK_EQ(sent.gso_type, header.gso_type);
		bench_stop(&b);
		for (unsigned bit = 0; bit < 64; bit++) {
			if (!(HEADERS[i].features >> bit & 1))
				continue;
			bench_start(&b, ALL & ~(UINT64_C(1) << bit), 1);
			CHECK(!is_sent(&b, header, &sent));
			bench_stop(&b);
		}
	}
	bench_unmake(&b);
}

static void test_a_gso_type_that_nobody_knows_is_dropped(void)
{
	static const uint8_t TYPES[] = {2, 3, 6, 7, 0x40, 0x80, 0x7f, 0x85, 0xff};
	struct virtio_net_hdr_v1 header = TSO4, sent;
	struct bench b;

	bench_run(&b, ~UINT64_C(0) & ~(UINT64_C(1) << 29));
	for (unsigned i = 0; i < sizeof(TYPES); i++) {
		header.gso_type = TYPES[i];
		CHECK(!is_sent(&b, header, &sent));
	}
	CHECK(is_sent(&b, TSO4, &sent));
	bench_unmake(&b);
}

static void test_fields_beyond_the_frame_are_dropped(void)
{
	struct virtio_net_hdr_v1 header, sent;
	struct bench b;

	bench_run(&b, ALL);
	header = TSO4;
	header.gso_size = 0;
	CHECK(!is_sent(&b, header, &sent));
	header = TSO4;
	header.hdr_len = 2000;
	CHECK(is_sent(&b, header, &sent));
	header.hdr_len = 2001;
	CHECK(!is_sent(&b, header, &sent));
	header = CSUM;
	header.csum_start = 1990;
	header.csum_offset = 8;
	CHECK(is_sent(&b, header, &sent));
	header.csum_offset = 9;
	CHECK(!is_sent(&b, header, &sent));
	header.csum_start = header.csum_offset = 0xffff;
	CHECK(!is_sent(&b, header, &sent));
	header = TSO4;
	header.flags = 0; /* segments without checksums */
	CHECK(!is_sent(&b, header, &sent));
	bench_unmake(&b);
}

/* Hints that mean nothing, flags of the future, and a count of buffers. */
static void test_what_has_no_meaning_is_cleared(void)
{
	struct virtio_net_hdr_v1 header = TSO4, sent;
	struct bench b;

	bench_run(&b, ALL);
	header.flags = 0xfe;
	header.gso_type = 0;
	header.num_buffers = 7;
	CHECK(is_sent(&b, header, &sent));
	CHECK_EQ(memcmp(&sent, &PLAIN, PV_NET_HEADER), 0);
	header = CSUM;
	header.flags = 0xff;
	header.hdr_len = header.gso_size = 0xffff;
	CHECK(is_sent(&b, header, &sent));
	CHECK_EQ(memcmp(&sent, &CSUM, PV_NET_HEADER), 0);
	bench_unmake(&b);
}

static void test_lengths_that_no_frame_has_are_dropped(void)
{
	static const uint32_t LENGTHS[] = {0, 1, PV_NET_FRAME_MIN - 1, PV_NET_FRAME_MAX + 1};
	struct bench b;

	bench_run(&b, 0);
	make_frame(frame, sizeof(frame), 1);
	for (unsigned i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
		offer_packet(&b, 0, PLAIN, frame, LENGTHS[i]);
		WAIT_FOR(used(&b.queues[TX]) == i + 1);
		WAIT_FOR(STAT(&b, tx_malformed) == i + 1);
	}
	offer_packet(&b, 0, PLAIN, frame, PV_NET_FRAME_MIN);
	CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + PV_NET_FRAME_MIN);
	WAIT_FOR(used(&b.queues[TX]) == 5);
	offer_packet(&b, 0, PLAIN, frame, PV_NET_FRAME_MAX);
	CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + PV_NET_FRAME_MAX);
	CHECK_EQ(memcmp(packet + PV_NET_HEADER, frame, PV_NET_FRAME_MAX), 0);
	bench_unmake(&b);
}

static void test_a_chain_of_four_gigabytes_is_dropped(void)
{
	enum { PIECES = 1024, PIECE = 4 << 20 };
	struct bench b;
	struct queue *q = &b.queues[TX];
	struct pv_desc *table;

	bench_run(&b, 0);
	table = (struct pv_desc *)(void *)data_at(&b, 0x500000);
	for (uint16_t i = 0; i < PIECES; i++)
		table[i] = (struct pv_desc){BENCH_DATA, PIECE,
		                            (uint16_t)(i + 1 < PIECES ? PV_DESC_NEXT : 0),
		                            (uint16_t)(i + 1)};
	q->desc[0] = (struct pv_desc){BENCH_DATA + 0x500000, PIECES * 16, PV_DESC_INDIRECT, 0};
	q->avail->ring[0] = 0;
	q->offered = 1;
	show(q);
	kick(q);
	WAIT_FOR(used(q) == 1);
	CHECK_EQ(STAT(&b, tx_malformed), 1);
	check_lives(&b);
	bench_unmake(&b);
}

/* Up to as many segments as writev(2) takes with the header. */
static void test_a_frame_of_a_thousand_segments(void)
{
	struct bench b;
	struct queue *q = &b.queues[TX];
	struct pv_desc *table;

	bench_run(&b, 0);
	table = (struct pv_desc *)(void *)data_at(&b, 0x200000);
	make_frame(frame, 1024, 1);
	memcpy(data_at(&b, PV_NET_HEADER), frame, 1024);
	for (uint16_t count = 1023; count <= 1024; count++) {
		/* The header and the first bytes together. */
		for (uint16_t i = 0; i < count; i++)
			table[i] = (struct pv_desc){BENCH_DATA + (i ? 12u + i : 0u),
			                            i ? 1 : PV_NET_HEADER + 1,
			                            (uint16_t)(i + 1 < count ? PV_DESC_NEXT : 0),
			                            (uint16_t)(i + 1)};
		q->desc[0] = (struct pv_desc){BENCH_DATA + 0x200000, count * 16u,
		                              PV_DESC_INDIRECT, 0};
		q->avail->ring[q->offered++ % BENCH_SIZE] = 0;
		show(q);
		kick(q);
		if (count == 1023) {
			CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + 1023);
			CHECK_EQ(memcmp(packet + PV_NET_HEADER, frame, 1023), 0);
		}
		WAIT_FOR(used(q) == q->offered);
	}
	CHECK_EQ(STAT(&b, tx_malformed), 1);
	bench_unmake(&b);
}

static void test_a_packet_without_a_whole_header_breaks_the_device(void)
{
	struct bench b;

	bench_run(&b, 0);
	offer(&b.queues[TX], &(struct part){0, PV_NET_HEADER - 1, false}, 1);
	check_broken(&b, "a packet to send without a whole header");
	bench_unmake(&b);
}

static void test_a_chain_of_no_bytes_breaks_the_device(void)
{
	struct bench b;
	struct part parts[] = {{0, 0, false}, {0, 0, false}};

	bench_run(&b, 0);
	offer(&b.queues[TX], parts, 2);
	check_broken(&b, "a packet to send without a whole header");
	bench_unmake(&b);
}

static void test_a_writable_packet_breaks_the_device(void)
{
	struct bench b;
	struct part parts[] = {{0, 100, false}, {100, 10, true}};

	bench_run(&b, 0);
	offer(&b.queues[TX], parts, 2);
	check_broken(&b, "a packet to send with a part that can be written");
	bench_unmake(&b);
}

/* The host's queue is full: the driver's packets wait in the ring, and none is lost. */
static void test_a_full_host_makes_packets_wait(void)
{
	struct bench b;
	struct queue *q = &b.queues[TX];
	uint16_t stuck;

	bench_run(&b, 0);
	make_frame(frame, 60000, 8);
	offer_packets(&b, 40, frame, 60000);
	WAIT_FOR(STAT(&b, tx_blocked) == 1);
	stuck = (uint16_t)STAT(&b, tx_packets);
	CHECK(stuck < 40);
	WAIT_FOR(used(q) == stuck);
	kick(q);
	usleep(10000);
	CHECK_EQ(used(q), stuck);
	for (unsigned i = 0; i < 40; i++) {
		CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + 60000);
		CHECK_EQ(memcmp(packet + PV_NET_HEADER, frame, 60000), 0);
	}
	WAIT_FOR(used(q) == 40);
	CHECK_EQ(STAT(&b, tx_packets), 40);
	CHECK_EQ(STAT(&b, tx_errors), 0);
	bench_unmake(&b);
}

/* A race, as a hostile driver has it. */
__attribute__((no_sanitize("thread"))) static void overwrite(char *at, uint8_t value)
{
	for (unsigned i = 0; i < PV_NET_HEADER; i++)
		((volatile uint8_t *)at)[i] = value;
}

/* What the driver changes after the device has looked reaches nobody. */
static void test_the_header_that_was_checked_is_the_one_that_is_sent(void)
{
	struct virtio_net_hdr_v1 sent;
	struct bench b;

	bench_run(&b, F(CSUM));
	make_frame(frame, 60000, 8);
	for (unsigned i = 0; i < 20; i++)
		offer_packet(&b, i * 65536, PLAIN, frame, 60000);
	WAIT_FOR(STAT(&b, tx_blocked) == 1);
	/* The one that is held, whichever it is. */
	for (unsigned i = 0; i <= used(&b.queues[TX]); i++)
		overwrite(data_at(&b, i * 65536), 0xff);
	for (unsigned i = 0; i < 20; i++) {
		CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + 60000);
		memcpy(&sent, packet, PV_NET_HEADER);
		CHECK_EQ(sent.gso_type, 0);
	}
	bench_unmake(&b);
}

static void test_while_packets_flow_no_kick_is_asked_for(void)
{
	struct bench b;
	struct queue *q = &b.queues[TX];

	bench_run(&b, 0);
	WAIT_FOR(__atomic_load_n(&q->used->flags, __ATOMIC_ACQUIRE) == 0);
	make_frame(frame, 60000, 8);
	offer_packets(&b, 20, frame, 60000);
	WAIT_FOR(STAT(&b, tx_blocked) == 1);
	CHECK_EQ(__atomic_load_n(&q->used->flags, __ATOMIC_ACQUIRE), PV_USED_NO_NOTIFY);
	for (unsigned i = 0; i < 20; i++)
		host_gets(&b, packet, ROOM);
	WAIT_FOR(__atomic_load_n(&q->used->flags, __ATOMIC_ACQUIRE) == 0);
	bench_unmake(&b);
}

static void run_all(void)
{
	RUN(test_a_packet_reaches_the_host);
	RUN(test_header_and_frame_split_anyhow);
	RUN(test_headers_are_held_to_what_was_negotiated);
	RUN(test_a_gso_type_that_nobody_knows_is_dropped);
	RUN(test_fields_beyond_the_frame_are_dropped);
	RUN(test_what_has_no_meaning_is_cleared);
	RUN(test_lengths_that_no_frame_has_are_dropped);
	RUN(test_a_chain_of_four_gigabytes_is_dropped);
	RUN(test_a_frame_of_a_thousand_segments);
	RUN(test_a_packet_without_a_whole_header_breaks_the_device);
	RUN(test_a_chain_of_no_bytes_breaks_the_device);
	RUN(test_a_writable_packet_breaks_the_device);
	RUN(test_a_full_host_makes_packets_wait);
	RUN(test_the_header_that_was_checked_is_the_one_that_is_sent);
	RUN(test_while_packets_flow_no_kick_is_asked_for);
}

int main(void)
{
	on_each_thread(run_all);
	return 0;
}
