/* What a shared thread costs a NIC that is alone on it, beside one of its own: packets to a host
 * that takes them all, packets from one that sends all the time, and round trips.
 *
 *     $(.venv/bin/python -m pyvirt.native.program plain native/tests/net/bench_shared.c) SECONDS
 *
 * prints a line for each kind of thread, turn by turn: packets or trips a second. */
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>

#include "tests/net/bench.h"

enum { FRAME = 1400, BURST = 32, TURNS = 5, BUFFER = 2048 };

static uint8_t frame[FRAME];
static atomic_bool over;

static void sleep_until_interrupted(struct bench *b)
{
	eventfd_t value;
	struct pollfd fd = {.fd = b->guest.irq_fd, .events = POLLIN};

	(void)poll(&fd, 1, 10);
	(void)eventfd_read(fd.fd, &value);
}

static void *drain(void *opaque)
{
	struct bench *b = opaque;
	uint8_t packet[PV_NET_HEADER + FRAME];

	while (!atomic_load(&over))
		if (readable(b->host[0], 10))
			(void)!read(b->host[0], packet, sizeof(packet));
	return NULL;
}

static void *flood(void *opaque)
{
	struct bench *b = opaque;
	uint8_t packet[PV_NET_HEADER + FRAME] = {0};

	make_frame(packet + PV_NET_HEADER, FRAME, 1);
	while (!atomic_load(&over))
		if (send(b->host[0], packet, sizeof(packet), MSG_DONTWAIT) < 0)
			(void)poll(&(struct pollfd){.fd = b->host[0], .events = POLLOUT}, 1, 10);
	return NULL;
}

static void *echo(void *opaque)
{
	struct bench *b = opaque;
	uint8_t packet[PV_NET_HEADER + FRAME];

	while (!atomic_load(&over))
		if (readable(b->host[0], 10)) {
			ssize_t bytes = read(b->host[0], packet, sizeof(packet));

			if (bytes > 0)
				(void)!send(b->host[0], packet, (size_t)bytes, 0);
		}
	return NULL;
}

static void keep_sending(struct bench *b)
{
	struct queue *q = &b->queues[TX];

	if ((uint16_t)(q->offered - used(q)) < BENCH_SIZE - BURST)
		offer_packets(b, BURST, frame, FRAME);
	else
		sleep_until_interrupted(b);
}

static void keep_receiving(struct bench *b)
{
	struct queue *q = &b->queues[RX];

	if ((uint16_t)(q->offered - used(q)) <= BENCH_SIZE - BURST)
		offer_buffers(b, RX, BURST, 0x100000, BUFFER);
	else
		sleep_until_interrupted(b);
}

static void make_a_trip(struct bench *b)
{
	uint16_t before = used(&b->queues[RX]);

	offer_buffers(b, RX, 1, 0x100000, BUFFER);
	offer_packets(b, 1, frame, 60);
	while (used(&b->queues[RX]) == before)
		sleep_until_interrupted(b);
}

static double measure(void *(*host)(void *), void (*step)(struct bench *), double seconds)
{
	struct bench b;
	struct pv_net_stats found;
	uint64_t start, end;
	pthread_t thread;

	bench_run(&b, MRG);
	atomic_store(&over, false);
	CHECK_EQ(pthread_create(&thread, NULL, host, &b), 0);
	start = pv_now_ns();
	end = start + (uint64_t)(seconds * 1e9);
	while (pv_now_ns() < end)
		step(&b);
	found = stats(&b);
	end = pv_now_ns();
	atomic_store(&over, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	bench_unmake(&b);
	return (double)(host == drain ? found.tx_packets : found.rx_packets) * 1e9 /
	       (double)(end - start);
}

int main(int argc, char **argv)
{
	static const char *const NAMES[] = {"own", "io_uring", "threads"};
	pv_engine_make *const makes[] = {NULL, pv_uring_new, pv_pool_new};
	double seconds = argc > 1 ? atof(argv[1]) : 1;

	make_frame(frame, FRAME, 1);
	for (unsigned turn = 0; turn < 3 * TURNS; turn++) {
		unsigned kind = turn % 3;

		if (makes[kind]) {
			CHECK_EQ(pv_iothread_new(PV_SANDBOX_IOTHREAD, "shared", &bench_thread), 0);
			pv_iothread_prefer(bench_thread, makes[kind]);
		}
		printf("%-8s out %7.0f in %7.0f trips %6.0f\n", NAMES[kind],
		       measure(drain, keep_sending, seconds),
		       measure(flood, keep_receiving, seconds), measure(echo, make_a_trip, seconds));
		pv_iothread_free(bench_thread);
		bench_thread = NULL;
	}
	return 0;
}
