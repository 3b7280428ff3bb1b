/* A network device's life: started and stopped, its backends coming and going, its link, its
 * limits, several pairs, and a stream in the place of the tap.
 *
 * sources: net.c net_ctrl.c net_limit.c net_mode.c net_rx.c net_stream.c net_tap.c net_tx.c
 * net_vhost.c net_worker.c iov.c throttle.c memory.c virtqueue.c virtqueue_chain.c virtio_irq.c */
#include <arpa/inet.h>
#include <pthread.h>

#include "net_bench.h"

enum { ROOM = PV_NET_HEADER + PV_NET_FRAME_MAX };

static uint8_t frame[PV_NET_FRAME_MAX], packet[ROOM];
static const struct virtio_net_hdr_v1 PLAIN = {0};

static void test_started_and_stopped_a_hundred_times(void)
{
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	make_frame(frame, 60, 1);
	for (unsigned i = 0; i < 100; i++) {
		bench_start(&b, MRG | F(CTRL_VQ), 1);
		check_lives(&b);
		offer_buffers(&b, RX, 4, 0, 1526);
		host_sends(&b, frame, 60, PLAIN);
		WAIT_FOR(used(&b.queues[RX]) == 1);
		bench_stop(&b);
		bench_stop(&b);
	}
	CHECK_EQ(STAT(&b, rx_packets), 100);
	bench_unmake(&b);
}

/* With packets on their way in both directions, and one that the host does not take. */
static void test_stopped_while_it_sends(void)
{
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	make_frame(frame, 60000, 1);
	for (unsigned i = 0; i < 20; i++) {
		bench_start(&b, MRG, 1);
		offer_buffers(&b, RX, 3, 0x300000, 100);
		host_sends(&b, frame, 1000, PLAIN);
		offer_packets(&b, 40, frame, 60000);
		if (i % 2)
			WAIT_FOR(used(&b.queues[TX]) > 0);
		bench_stop(&b);
		while (readable(b.host[0], 0))
			CHECK(read(b.host[0], packet, ROOM) > 0);
	}
	bench_unmake(&b);
}

static void check_loss(struct bench *b)
{
	CHECK(readable(b->broken_fd, 10000));
	CHECK_EQ(pv_net_take_lost(b->net), 1);
	CHECK_EQ(pv_net_take_lost(b->net), 0);
	CHECK(!pv_virtio_irq_take_reason(b->irq));
}

static void test_a_host_that_goes_away_is_told_of_once(void)
{
	static const uint32_t KINDS[] = {PV_NET_TAP, PV_NET_STREAM};

	for (unsigned i = 0; i < 2; i++) {
		struct bench b;

		bench_make(&b, KINDS[i], (struct pv_net_config){0});
		bench_start(&b, MRG, 1);
		shutdown(b.host[0], SHUT_RDWR);
		check_loss(&b);
		make_frame(frame, 60, 1);
		offer_packet(&b, 0, PLAIN, frame, 60);
		WAIT_FOR(used(&b.queues[TX]) == 1);
		CHECK_EQ(STAT(&b, tx_no_link), 1);
		bench_unmake(&b);
	}
}

/* A packet that waits for the host does not wait for ever. */
static void test_a_host_that_goes_away_while_it_is_full(void)
{
	struct bench b;

	bench_run(&b, 0);
	make_frame(frame, 60000, 1);
	offer_packets(&b, 40, frame, 60000);
	WAIT_FOR(STAT(&b, tx_blocked) == 1);
	shutdown(b.host[0], SHUT_RDWR);
	WAIT_FOR(used(&b.queues[TX]) == 40);
	check_loss(&b);
	bench_unmake(&b);
}

static void test_a_backend_is_changed_while_it_runs(void)
{
	struct bench b;

	bench_run(&b, MRG);
	make_frame(frame, 2000, 7);
	offer_buffers(&b, RX, 8, 0x200000, 500);
	CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), -EBUSY);
	for (unsigned i = 0; i < 20; i++) {
		check_lives(&b);
		CHECK_EQ(pv_net_detach(b.net), 0);
		offer_packet(&b, 0, PLAIN, frame, 60);
		WAIT_FOR(STAT(&b, tx_no_link) == i + 1);
		close(b.host[0]);
		close(b.own[0]);
		bench_connect(&b, 0, PV_NET_TAP);
		host_sends(&b, frame, 60, PLAIN);
		CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
		WAIT_FOR(used(&b.queues[RX]) == i + 1);
		offer_buffers(&b, RX, 1, 0x300000, 500);
	}
	bench_unmake(&b);
}

/* Buffers that were taken ahead are still the driver's, and what was not sent is sent by the next. */
static void test_what_waits_survives_a_change(void)
{
	struct bench b;

	bench_run(&b, MRG);
	make_frame(frame, 60000, 7);
	offer_packets(&b, 10, frame, 60000);
	WAIT_FOR(STAT(&b, tx_blocked) == 1);
	offer_buffers(&b, RX, 2, 0x200000, 500);
	CHECK_EQ(pv_net_detach(b.net), 0);
	WAIT_FOR(used(&b.queues[TX]) == 10);
	CHECK_EQ(STAT(&b, tx_no_link) + STAT(&b, tx_packets), 10);
	CHECK(STAT(&b, tx_no_link) > 0);
	while (readable(b.host[0], 0))
		CHECK(read(b.host[0], packet, ROOM) > 0);
	CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
	host_sends(&b, frame, 900, PLAIN);
	WAIT_FOR(used(&b.queues[RX]) == 2);
	CHECK_EQ(memcmp(data_at(&b, 0x200000 + PV_NET_HEADER), frame, 900), 0);
	bench_unmake(&b);
}

static void test_a_backend_that_cannot_be(void)
{
	int fds[] = {-1, -1};
	struct pv_net_backend backends[] = {
		{.kind = PV_NET_TAP, .count = 0, .fds = fds},
		{.kind = PV_NET_TAP, .count = PV_NET_PAIRS + 1, .fds = fds},
		{.kind = PV_NET_STREAM, .count = 2, .fds = fds},
		{.kind = PV_NET_STREAM, .count = 1, .fds = fds, .vhost_fds = fds},
		{.kind = 3, .count = 1, .fds = fds},
	};
	struct bench b;

	bench_run(&b, 0);
	CHECK_EQ(pv_net_detach(b.net), 0);
	CHECK_EQ(pv_net_detach(b.net), 0);
	for (unsigned i = 0; i < 5; i++)
		CHECK_EQ(pv_net_attach(b.net, &backends[i]), -EINVAL);
	backends[0].count = 1;
	CHECK_EQ(pv_net_attach(b.net, &backends[0]), -EBADF);
	CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
	check_lives(&b);
	bench_unmake(&b);
}

/* The kernel's part needs /dev/vhost-net; what is none is refused, and the device goes on. */
static void test_a_vhost_that_is_none_is_refused(void)
{
	struct bench b;
	int none[1];

	bench_run(&b, 0);
	CHECK_EQ(pv_net_detach(b.net), 0);
	none[0] = b.irq_fd;
	struct pv_net_backend backend = {PV_NET_TAP, 1, b.own, none};
	CHECK_EQ(pv_net_attach(b.net, &backend), -ENOTTY);
	CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
	check_lives(&b);
	bench_unmake(&b);
}

static void test_without_a_link_packets_are_dropped(void)
{
	struct bench b;

	bench_run(&b, MRG);
	offer_buffers(&b, RX, 8, 0x200000, 500);
	make_frame(frame, 60, 1);
	CHECK_EQ(pv_net_set_link(b.net, 0), 0);
	host_sends(&b, frame, 60, PLAIN);
	offer_packet(&b, 0, PLAIN, frame, 60);
	WAIT_FOR(used(&b.queues[TX]) == 1);
	WAIT_FOR(STAT(&b, rx_no_link) == 1);
	CHECK_EQ(STAT(&b, tx_no_link), 1);
	CHECK(!readable(b.host[0], 0));
	CHECK_EQ(pv_net_set_link(b.net, 1), 0);
	check_lives(&b);
	host_sends(&b, frame, 60, PLAIN);
	WAIT_FOR(used(&b.queues[RX]) == 1);
	bench_unmake(&b);
}

/* Each pair has a port; a second one is served only when the driver has asked for it. */
static void test_only_pairs_in_use_are_served(void)
{
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	bench_start(&b, F(MQ) | F(CTRL_VQ), BENCH_PAIRS);
	make_frame(frame, 60, 1);
	memset(data_at(&b, 0), 0, PV_NET_HEADER);
	memcpy(data_at(&b, PV_NET_HEADER), frame, 60);
	offer(&b.queues[2 * 1 + TX], &(struct part){0, PV_NET_HEADER + 60, false}, 1);
	check_lives(&b);
	CHECK_EQ(used(&b.queues[2 * 1 + TX]), 0);
	CHECK_EQ(pv_net_use_pairs(b.net, BENCH_PAIRS + 1), -EINVAL);
	CHECK_EQ(pv_net_use_pairs(b.net, 2), 0);
	/* The backend has one queue only, so the second pair has no link. */
	WAIT_FOR(used(&b.queues[2 * 1 + TX]) == 1);
	CHECK_EQ(STAT(&b, tx_no_link), 1);
	bench_unmake(&b);
}

/* So many bytes a second over ten seconds, in packets of one size. */
static void test_the_rate_of_what_is_charged(void)
{
	static const uint64_t RATES[] = {1000, 125000, 12500000, UINT64_C(1250000000)};
	struct pv_throttle throttle;

	for (unsigned i = 0; i < sizeof(RATES) / sizeof(RATES[0]); i++) {
		uint64_t now = 5000, end = now + UINT64_C(10000000000), taken = 0;

		pv_throttle_init(&throttle, RATES[i]);
		while (now < end) {
			uint64_t wait = pv_throttle_delay(&throttle, now);

			now += wait;
			if (wait == 0) {
				pv_throttle_charge(&throttle, now, 1500);
				taken += 1500;
			}
		}
		CHECK(taken >= 10 * RATES[i]);
		CHECK(taken <= 10 * RATES[i] + RATES[i] / 10 + 2 * 1500 + RATES[i] / 500);
	}
	pv_throttle_init(&throttle, 0);
	pv_throttle_charge(&throttle, 1, UINT32_MAX);
	CHECK_EQ(pv_throttle_delay(&throttle, 1), 0);
}

/* `count` packets of `length` bytes in each direction; how long that took, in milliseconds. */
static uint64_t take_time(struct pv_net_config config, unsigned count, uint32_t length)
{
	struct bench b;
	uint64_t start, end;

	bench_make(&b, PV_NET_TAP, config);
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, BENCH_SIZE, 0x200000, 1526);
	make_frame(frame, length, 1);
	start = now_ns();
	offer_packets(&b, count, frame, length);
	for (unsigned i = 0; i < count; i++)
		host_sends(&b, frame, length, PLAIN);
	for (unsigned i = 0; i < count; i++)
		CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + length);
	WAIT_FOR(used(&b.queues[RX]) == count && used(&b.queues[TX]) == count);
	end = now_ns();
	CHECK_EQ(STAT(&b, rx_throttled) > 0, config.rx_bytes + config.rx_packets > 0);
	CHECK_EQ(STAT(&b, tx_throttled) > 0, config.tx_bytes + config.tx_packets > 0);
	bench_unmake(&b);
	return (end - start) / 1000000;
}

/* A bucket holds a tenth of a second's worth, and may be overdrawn by a packet. */
static void test_limits_hold(void)
{
	CHECK(take_time((struct pv_net_config){.tx_packets = 100}, 40, 60) >= 280);
	CHECK(take_time((struct pv_net_config){.rx_packets = 100}, 40, 60) >= 280);
	CHECK(take_time((struct pv_net_config){.tx_bytes = 100000}, 40, 1000) >= 280);
	CHECK(take_time((struct pv_net_config){.rx_bytes = 100000}, 40, 1000) >= 280);
	take_time((struct pv_net_config){0}, 40, 1000);
}

static void test_a_limit_does_not_keep_it_from_stopping(void)
{
	struct bench b;
	uint64_t start;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){.tx_bytes = 1, .rx_bytes = 1});
	bench_start(&b, 0, 1);
	make_frame(frame, 60000, 1);
	offer_packets(&b, 3, frame, 60000);
	WAIT_FOR(STAT(&b, tx_throttled) == 1);
	start = now_ns();
	bench_stop(&b);
	CHECK(now_ns() - start < UINT64_C(9000000000));
	bench_unmake(&b);
}

static void stream_sends(struct bench *b, const uint8_t *data, uint32_t length)
{
	uint32_t prefix = htonl(length);

	write_all(b->host[0], &prefix, 4);
	write_all(b->host[0], data, length);
}

static void test_a_stream_carries_packets_both_ways(void)
{
	static const uint32_t LENGTHS[] = {14, 60, 1514, 9014, 65549};
	struct bench b;
	uint16_t taken = 0;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, BENCH_SIZE, 0x200000, 4096);
	for (unsigned i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
		uint32_t prefix, count = (PV_NET_HEADER + LENGTHS[i] + 4095) / 4096;

		make_frame(frame, LENGTHS[i], i);
		stream_sends(&b, frame, LENGTHS[i]);
		WAIT_FOR(used(&b.queues[RX]) == (uint16_t)(taken + count));
		CHECK_EQ(memcmp(data_at(&b, 0x20000c + taken * 4096u), frame,
		                LENGTHS[i]), 0);
		taken = (uint16_t)(taken + count);
		offer_packet(&b, 0, PLAIN, frame, LENGTHS[i]);
		read_all(b.host[0], &prefix, 4);
		CHECK_EQ(ntohl(prefix), LENGTHS[i]);
		read_all(b.host[0], packet, LENGTHS[i]);
		CHECK_EQ(memcmp(packet, frame, LENGTHS[i]), 0);
		WAIT_FOR(used(&b.queues[TX]) == i + 1);
	}
	bench_unmake(&b);
}

/* Byte by byte, and many in one piece. */
static void test_a_stream_may_come_in_pieces(void)
{
	enum { COUNT = 20, LENGTH = 60 };
	uint8_t bytes[COUNT * (4 + LENGTH)];
	struct bench b;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, 2 * COUNT, 0, 100);
	for (uint32_t i = 0; i < COUNT; i++) {
		bytes[i * (4 + LENGTH)] = bytes[i * (4 + LENGTH) + 1] = 0;
		bytes[i * (4 + LENGTH) + 2] = 0;
		bytes[i * (4 + LENGTH) + 3] = LENGTH;
		make_frame(bytes + i * (4 + LENGTH) + 4, LENGTH, i);
	}
	for (uint32_t i = 0; i < sizeof(bytes); i++)
		write_all(b.host[0], bytes + i, 1);
	write_all(b.host[0], bytes, sizeof(bytes));
	WAIT_FOR(used(&b.queues[RX]) == 2 * COUNT);
	for (uint32_t i = 0; i < 2 * COUNT; i++)
		CHECK_EQ(memcmp(data_at(&b, i * 100 + PV_NET_HEADER),
		                bytes + i % COUNT * (4 + LENGTH) + 4, LENGTH), 0);
	bench_unmake(&b);
}

/* A socket takes a part of a packet and then no more: the rest follows, and nothing in between. */
static void test_a_full_stream_loses_nothing(void)
{
	enum { COUNT = 30, LENGTH = 60000 };
	struct bench b;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, 0, 1);
	make_frame(frame, LENGTH, 3);
	offer_packets(&b, COUNT, frame, LENGTH);
	WAIT_FOR(STAT(&b, tx_blocked) == 1);
	for (unsigned i = 0; i < COUNT; i++) {
		uint32_t prefix;

		read_all(b.host[0], &prefix, 4);
		CHECK_EQ(ntohl(prefix), LENGTH);
		read_all(b.host[0], packet, LENGTH);
		CHECK_EQ(memcmp(packet, frame, LENGTH), 0);
	}
	WAIT_FOR(used(&b.queues[TX]) == COUNT);
	bench_unmake(&b);
}

static void test_a_stream_with_a_length_that_cannot_be_is_given_up(void)
{
	uint32_t prefix = htonl(PV_NET_FRAME_MAX + 1);
	struct bench b;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, 4, 0, 100);
	stream_sends(&b, frame, 13);
	WAIT_FOR(STAT(&b, rx_errors) == 1);
	write_all(b.host[0], &prefix, 4);
	check_loss(&b);
	bench_unmake(&b);
}

static struct bench_queue *endless;

/* A host that is so fast that the driver has always more to send. */
static int send_endlessly(struct pv_net_port *port, const struct iovec *iov, int count)
{
	(void)port;
	(void)iov;
	(void)count;
	add(endless, &(struct part){0, PV_NET_HEADER + 60, false}, 1);
	show(endless);
	return 0;
}

static void test_endless_sending_does_not_keep_packets_from_the_driver(void)
{
	struct pv_net_port_ops ops;
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	ops = *b.net->ports[0].ops;
	ops.send = send_endlessly;
	b.net->ports[0].ops = &ops;
	bench_start(&b, MRG | F(CTRL_VQ), 1);
	endless = &b.queues[TX];
	make_frame(frame, 60, 1);
	offer_buffers(&b, RX, 8, 0x200000, 500);
	offer_packets(&b, 8, frame, 60);
	WAIT_FOR(STAT(&b, tx_packets) > 1000);
	for (uint16_t i = 1; i < 8; i++) {
		host_sends(&b, frame, 60, PLAIN);
		WAIT_FOR(used(&b.queues[RX]) == i);
	}
	bench_unmake(&b);
}

static void *change_link(void *opaque)
{
	struct bench *b = opaque;

	for (unsigned i = 0; i < 50; i++) {
		(void)pv_net_set_link(b->net, i % 2);
		CHECK_EQ(pv_net_detach(b->net), 0);
		CHECK_EQ(bench_attach(b, PV_NET_TAP, 1), 0);
	}
	return NULL;
}

/* A driver at work in both directions while the host's side changes. */
static void test_changes_under_traffic(void)
{
	struct bench b;
	pthread_t thread;

	bench_run(&b, MRG);
	make_frame(frame, 1000, 1);
	memcpy(data_at(&b, 0x100000 + PV_NET_HEADER), frame, 1000);
	CHECK_EQ(pthread_create(&thread, NULL, change_link, &b), 0);
	for (unsigned i = 0; i < 2000; i++) {
		add(&b.queues[TX], &(struct part){0x100000, 1012, false}, 1);
		show(&b.queues[TX]);
		kick(&b.queues[TX]);
		if ((uint16_t)(b.queues[RX].offered - used(&b.queues[RX])) < 8)
			offer_buffers(&b, RX, 8, 0x200000, 500);
		(void)send(b.host[0], data_at(&b, 0x100000), 1012, MSG_DONTWAIT);
		while (recv(b.host[0], packet, ROOM, MSG_DONTWAIT) > 0)
			;
		WAIT_FOR((uint16_t)(b.queues[TX].offered - used(&b.queues[TX])) < BENCH_SIZE);
	}
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(pv_net_set_link(b.net, 1), 0);
	WAIT_FOR(used(&b.queues[TX]) == b.queues[TX].offered);
	CHECK_EQ(STAT(&b, tx_packets) + STAT(&b, tx_no_link), 2000);
	CHECK(!pv_virtio_irq_take_reason(b.irq));
	bench_unmake(&b);
}

int main(void)
{
	RUN(test_started_and_stopped_a_hundred_times);
	RUN(test_stopped_while_it_sends);
	RUN(test_a_host_that_goes_away_is_told_of_once);
	RUN(test_a_host_that_goes_away_while_it_is_full);
	RUN(test_a_backend_is_changed_while_it_runs);
	RUN(test_what_waits_survives_a_change);
	RUN(test_a_backend_that_cannot_be);
	RUN(test_a_vhost_that_is_none_is_refused);
	RUN(test_without_a_link_packets_are_dropped);
	RUN(test_only_pairs_in_use_are_served);
	RUN(test_the_rate_of_what_is_charged);
	RUN(test_limits_hold);
	RUN(test_a_limit_does_not_keep_it_from_stopping);
	RUN(test_a_stream_carries_packets_both_ways);
	RUN(test_a_stream_may_come_in_pieces);
	RUN(test_a_full_stream_loses_nothing);
	RUN(test_a_stream_with_a_length_that_cannot_be_is_given_up);
	RUN(test_endless_sending_does_not_keep_packets_from_the_driver);
	RUN(test_changes_under_traffic);
	return 0;
}
