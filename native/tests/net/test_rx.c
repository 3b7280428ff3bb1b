/* Packets from the host to the driver. */
#include "tests/net/bench.h"

static uint8_t frame[PV_NET_FRAME_MAX];
static const struct virtio_net_hdr_v1 PLAIN = {0};

static uint16_t num_buffers(const struct bench *b, uint32_t at)
{
	struct virtio_net_hdr_v1 header;

	memcpy(&header, data_at(b, at), sizeof(header));
	return header.num_buffers;
}

static void test_a_packet_goes_into_a_buffer(void)
{
	struct bench b;
	struct queue *q = &b.queues[RX];

	bench_run(&b, 0);
	make_frame(frame, 60, 1);
	offer_buffers(&b, RX, 2, 0, 1526);
	host_sends(&b, frame, 60, PLAIN);
	WAIT_FOR(used(q) == 1);
	CHECK_EQ(written(q, 0), PV_NET_HEADER + 60);
	CHECK_EQ(__atomic_load_n(&q->used->flags, __ATOMIC_ACQUIRE), PV_USED_NO_NOTIFY);
	CHECK_EQ(num_buffers(&b, 0), 1);
	CHECK_EQ(memcmp(data_at(&b, PV_NET_HEADER), frame, 60), 0);
	host_sends(&b, frame, 61, PLAIN);
	WAIT_FOR(used(q) == 2);
	CHECK_EQ(written(q, 1), PV_NET_HEADER + 61);
	CHECK(readable(b.guest.irq_fd, 10000));
	CHECK_EQ(STAT(&b, rx_packets), 2);
	CHECK_EQ(STAT(&b, rx_bytes), 121);
	bench_unmake(&b);
}

/* As Linux does without mergeable buffers: seventeen pages for a packet. */
static void test_a_large_packet_goes_into_one_chain(void)
{
	struct bench b;
	struct queue *q = &b.queues[RX];
	struct part parts[18];
	uint8_t *got = malloc(PV_NET_FRAME_MAX);

	bench_run(&b, 0);
	parts[0] = (struct part){0x100000, PV_NET_HEADER, true};
	for (uint32_t i = 1; i < 18; i++)
		parts[i] = (struct part){i * 8192, 4096, true};
	make_frame(frame, 65550, 3);
	offer(q, parts, 18);
	host_sends(&b, frame, 65550, PLAIN);
	WAIT_FOR(used(q) == 1);
	CHECK_EQ(written(q, 0), PV_NET_HEADER + 65550);
	CHECK_EQ(num_buffers(&b, 0x100000), 1);
	for (uint32_t i = 0; i < 16; i++)
		memcpy(got + i * 4096, data_at(&b, (i + 1) * 8192), 4096);
	CHECK_EQ(memcmp(got, frame, 65536), 0);
	CHECK_EQ(memcmp(data_at(&b, 17 * 8192), frame + 65536, 14), 0);
	free(got);
	bench_unmake(&b);
}

static void check_merged(struct bench *b, uint32_t at, uint32_t size, uint16_t first,
                         uint32_t length)
{
	const struct queue *q = &b->queues[RX];
	uint32_t total = PV_NET_HEADER + length;
	uint16_t count = (uint16_t)((total + size - 1) / size);

	WAIT_FOR(used(q) == (uint16_t)(first + count));
	CHECK_EQ(num_buffers(b, at), count);
	for (uint16_t i = 0; i < count; i++)
		CHECK_EQ(written(q, first + i), i + 1 < count ? size : total - i * size);
	CHECK_EQ(memcmp(data_at(b, at + PV_NET_HEADER), frame, length), 0);
}

static void test_a_packet_is_spread_over_merged_buffers(void)
{
	static const uint32_t LENGTHS[] = {60, 1488, 1489, 4000, 20000, 65557, 60, 9014};
	enum { SIZE = 1500 };
	struct bench b;
	uint16_t done = 0;

	bench_run(&b, MRG);
	offer_buffers(&b, RX, BENCH_SIZE, 0, SIZE);
	for (unsigned i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
		uint16_t count = (uint16_t)((PV_NET_HEADER + LENGTHS[i] + SIZE - 1) / SIZE);

		if (done + count > BENCH_SIZE) {
			done = 0;
			bench_stop(&b);
			bench_start(&b, MRG, 1);
			offer_buffers(&b, RX, BENCH_SIZE, 0, SIZE);
		}
		make_frame(frame, LENGTHS[i], i);
		host_sends(&b, frame, LENGTHS[i], PLAIN);
		check_merged(&b, done * SIZE, SIZE, done, LENGTHS[i]);
		done = (uint16_t)(done + count);
	}
	CHECK_EQ(STAT(&b, rx_no_room) + STAT(&b, rx_errors), 0);
	bench_unmake(&b);
}

/* The same packets through buffers of every awkward size. */
static void test_merged_buffers_may_have_any_size(void)
{
	static const uint32_t SIZES[] = {12, 13, 26, 70, 4096, 100000};
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	for (unsigned i = 0; i < sizeof(SIZES) / sizeof(SIZES[0]); i++) {
		bench_start(&b, MRG | F(CTRL_VQ), 1);
		memset(data_at(&b, 0), 0, 8192);
		make_frame(frame, 200, i);
		host_sends(&b, frame, 200, PLAIN);
		offer_buffers(&b, RX, BENCH_SIZE < 4096 * 100 / SIZES[i] ? BENCH_SIZE : 4, 0,
		              SIZES[i]);
		check_merged(&b, 0, SIZES[i], 0, 200);
		bench_stop(&b);
	}
	bench_unmake(&b);
}

static void test_a_packet_waits_for_more_buffers(void)
{
	struct bench b;

	bench_run(&b, MRG);
	make_frame(frame, 5000, 9);
	offer_buffers(&b, RX, 1, 0, 1000);
	host_sends(&b, frame, 5000, PLAIN);
	WAIT_FOR(recv(b.own[0], frame + 9000, 1, MSG_PEEK | MSG_DONTWAIT) < 0);
	offer_buffers(&b, RX, 2, 1000, 1000);
	usleep(20000);
	CHECK_EQ(used(&b.queues[RX]), 0);
	offer_buffers(&b, RX, 3, 3000, 1000);
	check_merged(&b, 0, 1000, 0, 5000);
	CHECK_EQ(STAT(&b, rx_packets), 1);
	bench_unmake(&b);
}

static void test_a_packet_larger_than_all_buffers_is_dropped(void)
{
	struct bench b;

	bench_run(&b, MRG);
	make_frame(frame, 60000, 4);
	offer_buffers(&b, RX, BENCH_SIZE, 0, 100);
	host_sends(&b, frame, 60000, PLAIN);
	WAIT_FOR(STAT(&b, rx_no_room) == 1);
	host_sends(&b, frame, 150, PLAIN);
	check_merged(&b, 0, 100, 0, 150);
	bench_unmake(&b);
}

static void test_a_packet_larger_than_a_chain_is_dropped_when_not_merged(void)
{
	struct bench b;

	bench_run(&b, 0);
	make_frame(frame, 1515, 4);
	offer_buffers(&b, RX, 3, 0, 1526);
	host_sends(&b, frame, 1515, PLAIN);
	WAIT_FOR(STAT(&b, rx_no_room) == 1);
	host_sends(&b, frame, 1514, PLAIN);
	WAIT_FOR(used(&b.queues[RX]) == 1);
	CHECK_EQ(written(&b.queues[RX], 0), 1526);
	CHECK_EQ(memcmp(data_at(&b, PV_NET_HEADER), frame, 1514), 0);
	bench_unmake(&b);
}

/* Buffers taken ahead move through the stock, time and again, and each has its packet. */
static void test_thousands_of_packets_in_order(void)
{
	enum { COUNT = 5000, STEP = 128 };
	struct bench b;
	struct queue *q = &b.queues[RX];
	unsigned sent = 0, seen = 0;

	bench_run(&b, MRG);
	offer_buffers(&b, RX, BENCH_SIZE, 0, STEP);
	while (seen < COUNT) {
		/* Never so many that the stock would be empty. */
		for (; sent < COUNT && sent < seen + BENCH_SIZE / 2; sent++) {
			make_frame(frame, 60 + sent % 50, sent);
			host_sends(&b, frame, 60 + sent % 50, PLAIN);
		}
		WAIT_FOR(used(q) != (uint16_t)seen);
		for (; used(q) != (uint16_t)seen; seen++) {
			uint32_t slot = seen % BENCH_SIZE, length = 60 + seen % 50;

			make_frame(frame, length, seen);
			CHECK_EQ(q->used->ring[slot].id, slot);
			CHECK_EQ(written(q, seen), PV_NET_HEADER + length);
			CHECK_EQ(memcmp(data_at(&b, slot * STEP + PV_NET_HEADER), frame, length),
			         0);
			offer_buffers(&b, RX, 1, slot * STEP, STEP);
		}
	}
	CHECK_EQ(STAT(&b, rx_packets), COUNT);
	bench_unmake(&b);
}

/* So many packets, each into buffers that are offered anew before it; how large the stock is after. */
static uint32_t stock_after(struct bench *b, unsigned count, uint32_t length)
{
	struct queue *q = &b->queues[RX];
	uint64_t before = STAT(b, rx_packets);
	uint32_t large;

	make_frame(frame, length, 1);
	for (unsigned i = 1; i <= count; i++) {
		while ((uint16_t)(q->offered - used(q)) < BENCH_SIZE)
			add(q, &(struct part){q->offered % BENCH_SIZE * 1500, 1500, true}, 1);
		show(q);
		kick(q);
		host_sends(b, frame, length, PLAIN);
		WAIT_FOR(STAT(b, rx_packets) == before + i);
	}
	CHECK_EQ(pv_net_drain(b->net, PV_FOREVER), 0);
	large = b->net->workers[0]->rx.large;
	CHECK_EQ(pv_net_resume(b->net), 0);
	return large;
}

/* It is for one buffer, some, or any packet. */
static void test_the_stock_is_as_large_as_packets_need_it(void)
{
	struct bench b;

	bench_run(&b, MRG);
	CHECK_EQ(stock_after(&b, 3, 60), 0);
	CHECK_EQ(stock_after(&b, 1, 4000), 1);
	CHECK_EQ(stock_after(&b, 100, 4000), 1);
	CHECK_EQ(stock_after(&b, 1, 20000), 2);
	CHECK_EQ(stock_after(&b, 100, 20000), 2);
	CHECK_EQ(stock_after(&b, 63, 4000), 2);
	CHECK_EQ(stock_after(&b, 1, 20000), 2);
	CHECK_EQ(stock_after(&b, 63, 4000), 2);
	CHECK_EQ(stock_after(&b, 1, 4000), 1);
	CHECK_EQ(stock_after(&b, 64, 60), 0);
	bench_unmake(&b);
}

/* Without buffers the tap is not read, and no thread turns in circles. */
static void test_starvation_leaves_packets_with_the_host(void)
{
	struct bench b;
	char byte;

	bench_run(&b, MRG);
	make_frame(frame, 60, 5);
	for (unsigned i = 0; i < 3; i++)
		host_sends(&b, frame, 60, PLAIN);
	WAIT_FOR(STAT(&b, rx_starved) == 1);
	/* A driver that offers some is to tell. */
	WAIT_FOR(__atomic_load_n(&b.queues[RX].used->flags, __ATOMIC_ACQUIRE) == 0);
	CHECK_EQ(recv(b.own[0], &byte, 1, MSG_PEEK | MSG_DONTWAIT), 1);
	kick(&b.queues[RX]);
	WAIT_FOR(STAT(&b, kicks) == 1);
	offer_buffers(&b, RX, 2, 0, 1500);
	WAIT_FOR(used(&b.queues[RX]) == 2);
	CHECK_EQ(recv(b.own[0], &byte, 1, MSG_PEEK | MSG_DONTWAIT), 1);
	check_lives(&b);
	offer_buffers(&b, RX, 1, 3000, 1500);
	WAIT_FOR(used(&b.queues[RX]) == 3);
	CHECK_EQ(STAT(&b, rx_packets), 3);
	bench_unmake(&b);
}

static void test_a_buffer_smaller_than_a_header_breaks_the_device(void)
{
	struct bench b;

	bench_run(&b, MRG);
	offer_buffers(&b, RX, 1, 0, PV_NET_HEADER - 1);
	check_broken(&b, "a receive buffer smaller than a packet's header");
	bench_unmake(&b);
}

static void test_a_readable_buffer_breaks_the_device(void)
{
	struct bench b;
	struct part parts[] = {{0, 100, false}, {100, 1500, true}};

	bench_run(&b, MRG);
	offer(&b.queues[RX], parts, 2);
	check_broken(&b, "a receive buffer with a part that cannot be written");
	make_frame(frame, 60, 1);
	host_sends(&b, frame, 60, PLAIN);
	usleep(10000);
	CHECK_EQ(used(&b.queues[RX]), 0);
	bench_unmake(&b);
}

static void test_a_broken_ring_breaks_the_device(void)
{
	struct bench b;

	bench_run(&b, MRG);
	b.queues[RX].offered = BENCH_SIZE + 1;
	show(&b.queues[RX]);
	kick(&b.queues[RX]);
	check_broken(&b, "avail idx is 65, 65 ahead in a queue of 64");
	bench_unmake(&b);
}

/* An indirect table may hold more segments than readv(2) takes. */
static void test_a_chain_of_a_thousand_segments(void)
{
	struct bench b;
	struct queue *q = &b.queues[RX];
	struct pv_desc *table;

	bench_run(&b, MRG);
	table = (struct pv_desc *)(void *)data_at(&b, 0x200000);
	for (uint16_t i = 0; i < 1024; i++)
		table[i] = (struct pv_desc){BENCH_DATA + i * 100u, 100,
		                            (uint16_t)(PV_DESC_WRITE | (i < 1023 ? PV_DESC_NEXT : 0)),
		                            (uint16_t)(i + 1)};
	q->desc[0] = (struct pv_desc){BENCH_DATA + 0x200000, 1024 * 16, PV_DESC_INDIRECT, 0};
	q->avail->ring[0] = 0;
	q->offered = 1;
	show(q);
	kick(q);
	make_frame(frame, PV_NET_FRAME_MAX, 6);
	host_sends(&b, frame, PV_NET_FRAME_MAX, PLAIN);
	WAIT_FOR(used(q) == 1);
	CHECK_EQ(written(q, 0), PV_NET_HEADER + PV_NET_FRAME_MAX);
	CHECK_EQ(memcmp(data_at(&b, PV_NET_HEADER), frame, PV_NET_FRAME_MAX), 0);
	bench_unmake(&b);
}

static void test_what_is_no_frame_is_dropped(void)
{
	struct bench b;

	bench_run(&b, 0);
	make_frame(frame, 60, 5);
	offer_buffers(&b, RX, 4, 0, 1526);
	host_sends(&b, frame, PV_NET_FRAME_MIN - 1, PLAIN);
	host_sends(&b, frame, PV_NET_FRAME_MIN, PLAIN);
	WAIT_FOR(used(&b.queues[RX]) == 1);
	CHECK_EQ(written(&b.queues[RX], 0), PV_NET_HEADER + PV_NET_FRAME_MIN);
	CHECK_EQ(STAT(&b, rx_errors), 1);
	bench_unmake(&b);
}

/* A tap may still hold packets from when more was negotiated. */
static void test_offloads_that_were_not_negotiated_are_dropped(void)
{
	struct virtio_net_hdr_v1 csum = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM};
	struct virtio_net_hdr_v1 tso = csum, ecn, odd = csum;
	struct bench b;

	tso.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
	ecn = tso;
	ecn.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
	odd.gso_type = 77;
	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	make_frame(frame, 60, 5);
	for (unsigned round = 0; round < 4; round++) {
		static const uint64_t FEATURES[] = {
			0, F(GUEST_CSUM), F(GUEST_CSUM) | F(GUEST_TSO4),
			F(GUEST_CSUM) | F(GUEST_TSO4) | F(GUEST_ECN)};
		uint64_t before = STAT(&b, rx_unfit);

		bench_start(&b, MRG | FEATURES[round], 1);
		offer_buffers(&b, RX, 8, 0, 1526);
		host_sends(&b, frame, 60, odd);
		host_sends(&b, frame, 60, csum);
		host_sends(&b, frame, 60, tso);
		host_sends(&b, frame, 60, ecn);
		WAIT_FOR(STAT(&b, rx_unfit) == before + 4 - round && used(&b.queues[RX]) == round);
		bench_stop(&b);
	}
	bench_unmake(&b);
}

static void test_only_a_driver_that_asked_is_told_of_good_checksums(void)
{
	struct virtio_net_hdr_v1 valid = {.flags = VIRTIO_NET_HDR_F_DATA_VALID};
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	make_frame(frame, 60, 5);
	for (unsigned asked = 0; asked < 2; asked++) {
		bench_start(&b, MRG | (asked ? F(GUEST_CSUM) : 0), 1);
		offer_buffers(&b, RX, 1, 0, 1526);
		host_sends(&b, frame, 60, valid);
		WAIT_FOR(used(&b.queues[RX]) == 1);
		CHECK_EQ(*data_at(&b, 0), asked ? VIRTIO_NET_HDR_F_DATA_VALID : 0);
		bench_stop(&b);
	}
	bench_unmake(&b);
}

/* However many packets: one publish and one interrupt, where the driver wants one. */
static void test_a_burst_has_one_interrupt(void)
{
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	make_frame(frame, 60, 5);
	for (unsigned i = 0; i < 8; i++)
		host_sends(&b, frame, 60, PLAIN);
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, 16, 0, 1526);
	WAIT_FOR(used(&b.queues[RX]) == 8);
	WAIT_FOR(STAT(&b, interrupts) == 1);
	WAIT_FOR(pv_virtio_irq_count(b.guest.irq) == 1);
	__atomic_store_n(&b.queues[RX].avail->flags, PV_AVAIL_NO_INTERRUPT, __ATOMIC_RELAXED);
	host_sends(&b, frame, 60, PLAIN);
	WAIT_FOR(STAT(&b, suppressed) == 1);
	CHECK_EQ(pv_virtio_irq_count(b.guest.irq), 1);
	bench_unmake(&b);
}

static void test_event_indexes_hold_interrupts_back(void)
{
	struct bench b;
	struct queue *q = &b.queues[RX];

	bench_run(&b, MRG | UINT64_C(1) << 29);
	__atomic_store_n(&q->avail->ring[BENCH_SIZE], 2, __ATOMIC_RELAXED); /* used_event */
	make_frame(frame, 60, 5);
	offer_buffers(&b, RX, 16, 0, 1526);
	for (unsigned i = 0; i < 4; i++) {
		host_sends(&b, frame, 60, PLAIN);
		WAIT_FOR(used(q) == i + 1);
		WAIT_FOR(STAT(&b, interrupts) + STAT(&b, suppressed) == i + 1);
		WAIT_FOR(pv_virtio_irq_count(b.guest.irq) == (i >= 2));
	}
	bench_unmake(&b);
}

static void run_all(void)
{
	RUN(test_a_packet_goes_into_a_buffer);
	RUN(test_a_large_packet_goes_into_one_chain);
	RUN(test_a_packet_is_spread_over_merged_buffers);
	RUN(test_merged_buffers_may_have_any_size);
	RUN(test_a_packet_waits_for_more_buffers);
	RUN(test_a_packet_larger_than_all_buffers_is_dropped);
	RUN(test_a_packet_larger_than_a_chain_is_dropped_when_not_merged);
	RUN(test_thousands_of_packets_in_order);
	RUN(test_the_stock_is_as_large_as_packets_need_it);
	RUN(test_starvation_leaves_packets_with_the_host);
	RUN(test_a_buffer_smaller_than_a_header_breaks_the_device);
	RUN(test_a_readable_buffer_breaks_the_device);
	RUN(test_a_broken_ring_breaks_the_device);
	RUN(test_a_chain_of_a_thousand_segments);
	RUN(test_what_is_no_frame_is_dropped);
	RUN(test_offloads_that_were_not_negotiated_are_dropped);
	RUN(test_only_a_driver_that_asked_is_told_of_good_checksums);
	RUN(test_a_burst_has_one_interrupt);
	RUN(test_event_indexes_hold_interrupts_back);
}

int main(void)
{
	on_each_thread(run_all);
	return 0;
}
