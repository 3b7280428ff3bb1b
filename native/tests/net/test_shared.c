/* NICs that share a thread: what happens to one is nothing to the other. */
#include "tests/net/bench.h"
#include "tests/process.h"

static uint8_t frame[60000], packet[PV_NET_HEADER + PV_NET_FRAME_MAX];
static const struct virtio_net_hdr_v1 PLAIN = {0};

static void make_shared(struct bench *b, unsigned count, struct pv_net_config config)
{
	for (unsigned i = 0; i < count; i++) {
		bench_make(&b[i], PV_NET_TAP, config);
		bench_start(&b[i], MRG | F(CTRL_VQ), 1);
	}
}

static void host_is_heard(struct bench *b)
{
	uint16_t before = used(&b->queues[RX]);

	offer_buffers(b, RX, 1, 0x200000, 500);
	host_sends(b, frame, 60, PLAIN);
	WAIT_FOR(used(&b->queues[RX]) == (uint16_t)(before + 1));
}

static void test_one_thread_for_all_pairs_of_all_nics(void)
{
	struct bench b[2];
	unsigned alone;

	make_shared(b, 1, (struct pv_net_config){0});
	alone = threads();
	WAIT_FOR(pv_iothread_tid(bench_thread) > 0);
	bench_make(&b[1], PV_NET_TAP, (struct pv_net_config){0});
	CHECK_EQ(pv_net_detach(b[1].net, PV_FOREVER), 0);
	CHECK_EQ(bench_attach(&b[1], PV_NET_TAP, BENCH_PAIRS), 0);
	bench_start(&b[1], MRG | F(CTRL_VQ) | F(MQ), BENCH_PAIRS);
	CHECK_EQ(threads(), alone);
	for (unsigned i = 0; i < 50; i++) {
		check_lives(&b[i % 2]);
		host_is_heard(&b[i % 2]);
	}
	/* A second pair, as if the driver had asked for it: no socket spreads packets as a tap. */
	atomic_store(&b[1].net->active, 2);
	pv_net_wake(b[1].net);
	memset(data_at(&b[1], 0), 0, PV_NET_HEADER);
	make_frame((uint8_t *)data_at(&b[1], PV_NET_HEADER), 60, 3);
	offer(&b[1].queues[2 + TX], &(struct part){0, PV_NET_HEADER + 60, false}, 1);
	CHECK(readable(b[1].host[1], 10000));
	CHECK_EQ(threads(), alone);
	bench_unmake(&b[1]);
	check_lives(&b[0]);
	bench_unmake(&b[0]);
}

static void test_one_breaks_and_the_other_lives(void)
{
	struct bench b[2];

	make_shared(b, 2, (struct pv_net_config){0});
	offer(&b[0].queues[TX], &(struct part){0, 4, false}, 1);
	check_broken(&b[0], "a packet to send without a whole header");
	check_lives(&b[1]);
	host_is_heard(&b[1]);
	bench_stop(&b[0]);
	pv_virtio_irq_reset(b[0].guest.irq);
	bench_start(&b[0], MRG | F(CTRL_VQ), 1);
	check_lives(&b[0]);
	bench_unmake(&b[0]);
	bench_unmake(&b[1]);
}

static void test_one_whose_host_is_full_and_the_other_lives(void)
{
	struct bench b[2];

	make_shared(b, 2, (struct pv_net_config){0});
	make_frame(frame, 60000, 1);
	offer_packets(&b[0], 40, frame, 60000);
	WAIT_FOR(STAT(&b[0], tx_blocked) == 1);
	for (unsigned i = 0; i < 50; i++) {
		check_lives(&b[1]);
		host_is_heard(&b[1]);
	}
	CHECK(used(&b[0].queues[TX]) < 40);
	while (used(&b[0].queues[TX]) < 40)
		if (readable(b[0].host[0], 10))
			CHECK(read(b[0].host[0], packet, sizeof(packet)) > 0);
	CHECK_EQ(STAT(&b[0], tx_packets), 40);
	bench_unmake(&b[0]);
	bench_unmake(&b[1]);
}

static void test_one_waits_for_its_limit_and_the_other_does_not(void)
{
	struct bench b[2];

	/* Enough for minutes. */
	bench_make(&b[0], PV_NET_TAP, (struct pv_net_config){.tx_packets = 1});
	bench_start(&b[0], MRG, 1);
	make_shared(&b[1], 1, (struct pv_net_config){0});
	make_frame(frame, 60, 1);
	offer_packets(&b[0], 40, frame, 60);
	WAIT_FOR(STAT(&b[0], tx_throttled) == 1);
	for (unsigned i = 0; i < 100; i++)
		check_lives(&b[1]);
	CHECK(used(&b[0].queues[TX]) < 40);
	bench_unmake(&b[0]);
	check_lives(&b[1]);
	bench_unmake(&b[1]);
}

static void test_one_sends_endlessly_and_the_other_lives(void)
{
	struct pv_net_port_ops ops;
	struct bench b[2];

	bench_make(&b[0], PV_NET_TAP, (struct pv_net_config){0});
	bench_is_endless(&b[0], &ops);
	bench_start(&b[0], MRG, 1);
	make_shared(&b[1], 1, (struct pv_net_config){0});
	make_frame(frame, 60, 1);
	offer_packets(&b[0], 8, frame, 60);
	WAIT_FOR(STAT(&b[0], tx_packets) > 1000);
	for (unsigned i = 0; i < 50; i++) {
		check_lives(&b[1]);
		host_is_heard(&b[1]);
	}
	bench_unmake(&b[1]);
	bench_unmake(&b[0]);
}

static void test_one_loses_its_host_and_the_other_lives(void)
{
	struct bench b[2];

	make_shared(b, 2, (struct pv_net_config){0});
	shutdown(b[0].host[0], SHUT_RDWR);
	check_loss(&b[0]);
	for (unsigned i = 0; i < 20; i++) {
		check_lives(&b[1]);
		host_is_heard(&b[1]);
	}
	bench_unmake(&b[0]);
	bench_unmake(&b[1]);
}

/* It has a thread of its own again without its backend, and with one that names none. */
static void test_a_backend_says_on_which_thread(void)
{
	struct pv_iothread *shared = bench_thread;
	struct bench b;

	make_shared(&b, 1, (struct pv_net_config){0});
	for (unsigned i = 0; i < 5; i++) {
		WAIT_FOR(pv_iothread_tid(shared) > 0);
		CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
		CHECK_EQ(pv_iothread_tid(shared), 0);
		bench_thread = NULL;
		CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
		CHECK_EQ(pv_iothread_tid(shared), 0);
		check_lives(&b);
		CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
		bench_thread = shared;
		CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
		check_lives(&b);
		host_is_heard(&b);
	}
	bench_unmake(&b);
}

static void test_the_kernels_data_path_is_on_no_thread(void)
{
	struct bench b;

	make_shared(&b, 1, (struct pv_net_config){0});
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
	struct pv_net_backend backend = {PV_NET_TAP, 1, b.own, b.own, bench_thread};
	CHECK_EQ(pv_net_attach(b.net, &backend, PV_FOREVER), -EINVAL);
	CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
	check_lives(&b);
	bench_unmake(&b);
}

static void run_all(void)
{
	make_frame(frame, 60, 1);
	if (!bench_thread)
		return;
	RUN(test_one_thread_for_all_pairs_of_all_nics);
	RUN(test_one_breaks_and_the_other_lives);
	RUN(test_one_whose_host_is_full_and_the_other_lives);
	RUN(test_one_waits_for_its_limit_and_the_other_does_not);
	RUN(test_one_sends_endlessly_and_the_other_lives);
	RUN(test_one_loses_its_host_and_the_other_lives);
	RUN(test_a_backend_says_on_which_thread);
	RUN(test_the_kernels_data_path_is_on_no_thread);
}

int main(void)
{
	on_each_thread(run_all);
	return 0;
}
