/* Faults of a NIC: lost packets. */
#include "tests/net/bench.h"

enum { LENGTH = 60, COUNT = 20 };

static uint8_t frame[LENGTH], packet[128];

static void lose(struct bench *b, uint32_t ops, uint64_t every)
{
	struct pv_fault fault = {
		.kind = PV_FAULT_DROP, .ops = ops, .last = UINT64_MAX, .every = every};
	uint64_t before;

	CHECK(pv_faults_add(pv_virtio_irq_faults(b->guest.irq), &fault) > 0);
	/* It is for what a turn finds that begins after this one. */
	before = STAT(b, kicks);
	kick(&b->queues[TX]);
	WAIT_FOR(STAT(b, kicks) > before);
}

static uint64_t hits(struct bench *b)
{
	struct pv_fault_state state;

	CHECK_EQ(pv_faults_read(pv_virtio_irq_faults(b->guest.irq), 0, &state), 0);
	return state.hits;
}

static void test_every_tenth_to_the_host(void)
{
	struct bench b;

	bench_run(&b, MRG);
	lose(&b, PV_FAULT_TX, 10);
	for (unsigned i = 0; i < COUNT; i++) {
		make_frame(frame, LENGTH, i);
		offer_packet(&b, i * 128, (struct virtio_net_hdr_v1){0}, frame, LENGTH);
	}
	for (unsigned i = 0; i < COUNT; i++) {
		if (i % 10 == 9)
			continue;
		make_frame(frame, LENGTH, i);
		CHECK_EQ(host_gets(&b, packet, sizeof(packet)), PV_NET_HEADER + LENGTH);
		CHECK_EQ(memcmp(packet + PV_NET_HEADER, frame, LENGTH), 0);
	}
	/* The driver gets its buffers back, of lost packets too. */
	WAIT_FOR(used(&b.queues[TX]) == COUNT);
	CHECK_EQ(hits(&b), 2);
	CHECK_EQ(STAT(&b, tx_packets), COUNT - 2);
	bench_unmake(&b);
}

static void test_every_tenth_to_the_driver(void)
{
	struct bench b;

	bench_run(&b, MRG);
	lose(&b, PV_FAULT_RX, 10);
	offer_buffers(&b, RX, COUNT, 0x200000, 1526);
	for (unsigned i = 0; i < COUNT; i++) {
		make_frame(frame, LENGTH, i);
		host_sends(&b, frame, LENGTH, (struct virtio_net_hdr_v1){0});
	}
	WAIT_FOR(used(&b.queues[RX]) == COUNT - 2 && hits(&b) == 2);
	for (unsigned i = 0, at = 0; i < COUNT; i++) {
		if (i % 10 == 9)
			continue;
		make_frame(frame, LENGTH, i);
		CHECK_EQ(memcmp(data_at(&b, 0x200000 + at++ * 1526 + PV_NET_HEADER), frame, LENGTH), 0);
	}
	/* The buffers that were not used are there still. */
	CHECK_EQ(pv_faults_remove(pv_virtio_irq_faults(b.guest.irq), 0), 0);
	kick(&b.queues[RX]);
	host_sends(&b, frame, LENGTH, (struct virtio_net_hdr_v1){0});
	WAIT_FOR(used(&b.queues[RX]) == COUNT - 1);
	bench_unmake(&b);
}

static void test_broken_from_outside(void)
{
	struct bench b;

	bench_run(&b, MRG);
	check_lives(&b);
	pv_virtio_irq_broken(b.guest.irq, "somebody asked for it");
	check_broken(&b, "somebody asked for it");
	offer_packet(&b, 0, (struct virtio_net_hdr_v1){0}, frame, LENGTH);
	usleep(20000);
	CHECK_EQ(used(&b.queues[TX]), 1);
	bench_stop(&b);
	pv_virtio_irq_reset(b.guest.irq);
	bench_start(&b, MRG, 1);
	check_lives(&b);
	bench_unmake(&b);
}

static void run_all(void)
{
	RUN(test_every_tenth_to_the_host);
	RUN(test_every_tenth_to_the_driver);
	RUN(test_broken_from_outside);
}

int main(void)
{
	on_each_thread(run_all);
	return 0;
}
