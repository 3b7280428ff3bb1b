/* A network device's life: started and stopped, its backends coming and going, its link, several
 * pairs. */
#include <pthread.h>

#include "tests/net/bench.h"
#include "tests/stuck.h"

enum { ROOM = PV_NET_HEADER + PV_NET_FRAME_MAX };

static uint8_t frame[PV_NET_FRAME_MAX], packet[ROOM];
static const struct virtio_net_hdr_v1 PLAIN = {0};

/* It is given up after a while, and the device is whole again once the host is. */
static void test_a_host_that_keeps_a_thread(void)
{
	struct bench b;
	char *page;
	int held;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	bench_start(&b, 0, 1);
	page = (char *)data_at(&b, 0x2000);
	held = hold_page(page);
	memset(data_at(&b, 0), 0, PV_NET_HEADER);
	offer(&b.queues[TX], (struct part[]){{0, PV_NET_HEADER, false}, {0x2000, 60, false}}, 2);
	CHECK(readable(held, 10000));
	CHECK_EQ(pv_net_detach(b.net, 0), -ETIMEDOUT);
	check_broken(&b, "the host keeps its threads");
	CHECK_EQ(pv_net_stop(b.net, 1000000), -ETIMEDOUT);
	release_page(held, page);
	CHECK_EQ(pv_net_stop(b.net, PV_FOREVER), 0);
	CHECK_EQ(host_gets(&b, packet, sizeof(packet)), PV_NET_HEADER + 60);
	bench_stop(&b);
	pv_virtio_irq_reset(b.guest.irq);
	bench_start(&b, 0, 1);
	check_lives(&b);
	bench_unmake(&b);
}

/* Whoever asked for a pause too soon finds a device that goes on, on all its threads. */
static void test_a_drain_that_the_host_keeps(void)
{
	struct bench b;
	char *page;
	int held;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	bench_start(&b, F(CTRL_VQ) | F(MQ), BENCH_PAIRS);
	page = (char *)data_at(&b, 0x2000);
	held = hold_page(page);
	memset(data_at(&b, 0), 0, PV_NET_HEADER);
	offer(&b.queues[TX], (struct part[]){{0, PV_NET_HEADER, false}, {0x2000, 60, false}}, 2);
	CHECK(readable(held, 10000));
	CHECK_EQ(pv_net_drain(b.net, 1000000), -ETIMEDOUT);
	CHECK_EQ(pv_virtio_irq_is_broken(b.guest.irq), 0);
	release_page(held, page);
	CHECK_EQ(host_gets(&b, packet, sizeof(packet)), PV_NET_HEADER + 60);
	WAIT_FOR(used(&b.queues[TX]) == 1);
	for (unsigned i = 0; i < 3; i++) {
		struct pv_net_state state;

		CHECK_EQ(pv_net_drain(b.net, PV_FOREVER), 0);
		CHECK_EQ(pv_net_drain(b.net, PV_FOREVER), 0);
		pv_net_save(b.net, &state);
		CHECK_EQ(state.pairs, 1);
		for (unsigned q = 0; q < 2 * BENCH_PAIRS; q++)
			CHECK_EQ(pv_virtqueue_in_flight(b.queues[q].ring), 0);
		CHECK_EQ(pv_net_resume(b.net), 0);
		offer(&b.queues[TX], (struct part[]){{0, PV_NET_HEADER, false}, {0x2000, 60, false}},
		      2);
		CHECK_EQ(host_gets(&b, packet, sizeof(packet)), PV_NET_HEADER + 60);
	}
	bench_unmake(&b);
}

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
		CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
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

/* Buffers taken ahead are still the driver's, and what was not sent is sent by the next. */
static void test_what_waits_survives_a_change(void)
{
	struct bench b;

	bench_run(&b, MRG);
	make_frame(frame, 60000, 7);
	offer_packets(&b, 10, frame, 60000);
	WAIT_FOR(STAT(&b, tx_blocked) == 1);
	offer_buffers(&b, RX, 2, 0x200000, 500);
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
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
		{.kind = PV_NET_LENT, .count = 2},
		{.kind = PV_NET_LENT, .count = 1, .vhost_fds = fds},
		{.kind = 4, .count = 1, .fds = fds},
	};
	struct bench b;

	bench_run(&b, 0);
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
	for (unsigned i = 0; i < 7; i++)
		CHECK_EQ(pv_net_attach(b.net, &backends[i], PV_FOREVER), -EINVAL);
	backends[0].count = 1;
	CHECK_EQ(pv_net_attach(b.net, &backends[0], PV_FOREVER), -EBADF);
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
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
	none[0] = b.guest.irq_fd;
	struct pv_net_backend backend = {PV_NET_TAP, 1, b.own, none, NULL};
	CHECK_EQ(pv_net_attach(b.net, &backend, PV_FOREVER), -ENOTTY);
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
	CHECK_EQ(pv_net_set_link(b.net, 0, PV_FOREVER), 0);
	host_sends(&b, frame, 60, PLAIN);
	offer_packet(&b, 0, PLAIN, frame, 60);
	WAIT_FOR(used(&b.queues[TX]) == 1);
	WAIT_FOR(STAT(&b, rx_no_link) == 1);
	CHECK_EQ(STAT(&b, tx_no_link), 1);
	CHECK(!readable(b.host[0], 0));
	CHECK_EQ(pv_net_set_link(b.net, 1, PV_FOREVER), 0);
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

static void test_endless_sending_does_not_keep_packets_from_the_driver(void)
{
	struct pv_net_port_ops ops;
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	bench_is_endless(&b, &ops);
	bench_start(&b, MRG | F(CTRL_VQ), 1);
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
		(void)pv_net_set_link(b->net, i % 2, PV_FOREVER);
		CHECK_EQ(pv_net_detach(b->net, PV_FOREVER), 0);
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
	CHECK_EQ(pv_net_set_link(b.net, 1, PV_FOREVER), 0);
	WAIT_FOR(used(&b.queues[TX]) == b.queues[TX].offered);
	CHECK_EQ(STAT(&b, tx_packets) + STAT(&b, tx_no_link), 2000);
	check_reason(b.guest.irq, NULL);
	bench_unmake(&b);
}

static void run_all(void)
{
	RUN(test_started_and_stopped_a_hundred_times);
	RUN(test_a_host_that_keeps_a_thread);
	RUN(test_a_drain_that_the_host_keeps);
	RUN(test_stopped_while_it_sends);
	RUN(test_a_host_that_goes_away_is_told_of_once);
	RUN(test_a_host_that_goes_away_while_it_is_full);
	RUN(test_a_backend_is_changed_while_it_runs);
	RUN(test_what_waits_survives_a_change);
	RUN(test_a_backend_that_cannot_be);
	RUN(test_a_vhost_that_is_none_is_refused);
	RUN(test_without_a_link_packets_are_dropped);
	RUN(test_only_pairs_in_use_are_served);
	RUN(test_endless_sending_does_not_keep_packets_from_the_driver);
	RUN(test_changes_under_traffic);
}

int main(void)
{
	on_each_thread(run_all);
	return 0;
}
