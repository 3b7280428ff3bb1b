/* An entropy device: its limit by a clock of the test's own, and its thread beside a driver. */
#include <errno.h>
#include <fcntl.h>

#include "rng/internal.h"
#include "tests/stuck.h"
#include "tests/virtio/guest.h"

enum { RAM = 1 << 20, BUFFERS = 1 << 19, LENGTH = 4096 };
#define NS_PER_S UINT64_C(1000000000)

struct bench {
	struct guest guest;
	struct queue queue;
	struct pv_rng *rng;
	int source, feed;
};

static void make(struct bench *b, uint64_t rate)
{
	int ends[2];

	memset(b, 0, sizeof(*b));
	guest_make(&b->guest, RAM);
	queue_make(&b->guest, &b->queue, 0, true, false);
	CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
	b->source = ends[0];
	b->feed = ends[1];
	CHECK_EQ(pv_rng_new(b->source, rate, &b->rng), 0);
}

static void unmake(struct bench *b)
{
	pv_rng_free(b->rng);
	queue_unmake(&b->queue);
	guest_unmake(&b->guest);
	close(b->source);
	close(b->feed);
}

static void start(struct bench *b)
{
	struct pv_queue queue = served(&b->queue);

	CHECK_EQ(pv_rng_start(b->rng, &queue, b->guest.irq), 0);
	CHECK_EQ(pv_rng_start(b->rng, &queue, b->guest.irq), -EBUSY);
}

static void stop(struct bench *b)
{
	CHECK_EQ(pv_rng_stop(b->rng, PV_FOREVER), 0);
	CHECK_EQ(pv_rng_stop(b->rng, PV_FOREVER), 0);
	pv_virtio_irq_reset(b->guest.irq);
}

static void ask(struct bench *b, uint32_t length, bool writable)
{
	uint16_t head = b->queue.free;

	queue_describe(&b->queue, BUFFERS, length, writable, false);
	queue_put(&b->queue, head);
	show(&b->queue);
}

static uint32_t answered(const struct bench *b, uint16_t position)
{
	return b->queue.used->ring[position % QUEUE_SIZE].len;
}

/* How many bytes a driver that always asks gets in so many seconds of the test's own. */
static uint64_t drain(uint64_t rate, uint32_t length, uint64_t seconds)
{
	uint64_t from = 1000 * NS_PER_S, now = from;
	struct pv_rng_stats stats;
	struct pv_queue queue;
	struct bench b;
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	make(&b, rate);
	b.rng->fd = zero;
	queue = served(&b.queue);
	pv_rng_begin(b.rng, &queue, b.guest.irq);
	while (now < from + seconds * NS_PER_S) {
		while ((uint16_t)(b.queue.offered - used(&b.queue)) < QUEUE_SIZE)
			ask(&b, length, true);
		pv_rng_serve(b.rng, now);
		CHECK(b.rng->wait == PV_RNG_TIME || b.rng->wait == PV_RNG_MORE);
		now = b.rng->wait == PV_RNG_TIME ? b.rng->until : now + 1000;
	}
	pv_rng_stats(b.rng, &stats);
	unmake(&b);
	close(zero);
	return stats.bytes;
}

/* Over a longer span: what the bucket held at first is among it. */
static void test_a_limit_holds_within_5_percent(void)
{
	static const struct {
		uint64_t rate;
		uint32_t length;
		uint64_t seconds;
	} CASES[] = {
		{5, 64, 100},           {64, 64, 100},        {64, 65536, 100},
		{1000, 1, 10},          {1000, 64, 100},      {4096, 4096, 100},
		{999999, 512, 10},      {1000000, 65536, 10}, {10485760, 65536, 10},
		{300, 7, 100},          {1234567, 4096, 5},   {1000000000, 65536, 3},
	};

	for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
		uint64_t ideal = CASES[i].rate * CASES[i].seconds;
		uint64_t bytes = drain(CASES[i].rate, CASES[i].length, CASES[i].seconds);

		CHECK(bytes >= ideal * 95 / 100);
		CHECK(bytes <= ideal * 105 / 100);
	}
}

/* A limit that allows for more makes no answer longer. */
static void test_an_answer_has_64_kib_at_most(void)
{
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	struct pv_queue queue;
	struct bench b;

	make(&b, UINT64_C(1) << 40);
	b.rng->fd = zero;
	queue = served(&b.queue);
	pv_rng_begin(b.rng, &queue, b.guest.irq);
	ask(&b, PV_RNG_REQUEST_MAX + LENGTH, true);
	pv_rng_serve(b.rng, NS_PER_S);
	CHECK_EQ(used(&b.queue), 1);
	CHECK_EQ(answered(&b, 0), PV_RNG_REQUEST_MAX);
	unmake(&b);
	close(zero);
}

/* More than a turn's, and the driver kicks once; it wants an interrupt for the last one alone. */
static void test_a_kick_for_many_requests(void)
{
	enum { MANY = QUEUE_SIZE - 1 };
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	struct bench b;

	make(&b, 0);
	b.rng->fd = zero;
	start(&b);
	b.queue.avail->ring[QUEUE_SIZE] = MANY - 1; /* used_event */
	for (unsigned i = 0; i < MANY; i++)
		ask(&b, LENGTH, true);
	kick(&b.queue);
	CHECK(readable(b.guest.irq_fd, 10000));
	CHECK_EQ(used(&b.queue), MANY);
	CHECK_EQ(pv_virtio_irq_count(b.guest.irq), 1);
	stop(&b);
	unmake(&b);
	close(zero);
}

static void test_requests_are_answered_as_the_source_has_bytes(void)
{
	struct pv_rng_stats stats;
	struct bench b;

	make(&b, 0);
	start(&b);
	for (uint16_t i = 0; i < 200; i++) {
		memset(b.guest.ram + BUFFERS, 0, LENGTH);
		ask(&b, LENGTH, true);
		kick(&b.queue);
		if (i % 3 == 0)
			usleep(100);
		write_all(b.feed, &i, sizeof(i));
		WAIT_FOR(used(&b.queue) == i + 1);
		CHECK_EQ(answered(&b, i), sizeof(i));
		CHECK_EQ(memcmp(b.guest.ram + BUFFERS, &i, sizeof(i)), 0);
	}
	pv_rng_stats(b.rng, &stats);
	CHECK_EQ(stats.requests, 200);
	CHECK_EQ(stats.bytes, 400);
	stop(&b);
	unmake(&b);
}

static void test_it_stops_whatever_it_waits_for(void)
{
	struct pv_rng_stats stats;
	struct bench b;

	make(&b, 64);
	start(&b); /* a kick */
	stop(&b);
	ask(&b, LENGTH, true);
	start(&b);
	do
		pv_rng_stats(b.rng, &stats);
	while (stats.blocked == 0); /* the source */
	stop(&b);
	CHECK_EQ(used(&b.queue), 0);
	write_all(b.feed, "0123456789", 10);
	queue_unmake(&b.queue);
	queue_make(&b.guest, &b.queue, 0, true, false);
	for (unsigned i = 0; i < 20; i++)
		ask(&b, LENGTH, true);
	start(&b);
	WAIT_FOR(used(&b.queue) == 2); /* 6 bytes and the rest */
	stop(&b);
	close(b.feed);
	b.feed = -1;
	start(&b);
	WAIT_FOR(pv_rng_take_failure(b.rng) == ENODATA); /* a second */
	CHECK_EQ(pv_rng_take_failure(b.rng), 0);
	stop(&b);
	unmake(&b);
}

static void test_a_source_that_only_says_it_has_bytes_is_not_asked_for_ever(void)
{
	struct pv_queue queue;
	struct bench b;

	make(&b, 0);
	queue = served(&b.queue);
	pv_rng_begin(b.rng, &queue, b.guest.irq);
	ask(&b, LENGTH, true);
	pv_rng_serve(b.rng, 5);
	CHECK_EQ(b.rng->wait, PV_RNG_SOURCE);
	pv_rng_serve(b.rng, 5);
	CHECK_EQ(b.rng->wait, PV_RNG_TIME);
	CHECK(b.rng->until > 5);
	CHECK_EQ(pv_virtqueue_in_flight(b.queue.ring), 0);
	write_all(b.feed, "x", 1);
	pv_rng_serve(b.rng, 6);
	CHECK_EQ(b.rng->wait, PV_RNG_KICK);
	ask(&b, LENGTH, true);
	pv_rng_serve(b.rng, 7);
	CHECK_EQ(b.rng->wait, PV_RNG_SOURCE);
	/* A new driver's device waits for it again. */
	pv_rng_begin(b.rng, &queue, b.guest.irq);
	pv_rng_serve(b.rng, 8);
	CHECK_EQ(b.rng->wait, PV_RNG_SOURCE);
	unmake(&b);
}

/* Once, until it has given bytes meanwhile or another driver has come. */
static void test_a_failure_is_told_of_once(void)
{
	struct pv_queue queue;
	struct bench b;
	int good;

	make(&b, 0);
	queue = served(&b.queue);
	good = b.source;
	pv_rng_begin(b.rng, &queue, b.guest.irq);
	ask(&b, LENGTH, true);
	b.rng->fd = -1;
	for (uint64_t now = 1; now < 3; now++) {
		pv_rng_serve(b.rng, now);
		CHECK_EQ(b.rng->wait, PV_RNG_TIME);
		CHECK_EQ(b.rng->until, now + NS_PER_S);
		CHECK_EQ(pv_rng_take_failure(b.rng), now == 1 ? EBADF : 0);
	}
	b.rng->fd = good;
	write_all(b.feed, "x", 1);
	pv_rng_serve(b.rng, 3);
	CHECK_EQ(used(&b.queue), 1);
	ask(&b, LENGTH, true);
	b.rng->fd = -1;
	pv_rng_serve(b.rng, 4);
	CHECK_EQ(pv_rng_take_failure(b.rng), EBADF);
	pv_rng_begin(b.rng, &queue, b.guest.irq);
	pv_rng_serve(b.rng, 5);
	CHECK_EQ(pv_rng_take_failure(b.rng), EBADF);
	unmake(&b);
}

static void test_a_broken_device_stops_and_starts(void)
{
	struct bench b;

	make(&b, 0);
	start(&b);
	ask(&b, LENGTH, false);
	kick(&b.queue);
	guest_check_broken(&b.guest, "a buffer for random bytes that is to be read");
	stop(&b);
	queue_unmake(&b.queue);
	queue_make(&b.guest, &b.queue, 0, true, false);
	start(&b);
	ask(&b, LENGTH, true);
	kick(&b.queue);
	write_all(b.feed, "x", 1);
	WAIT_FOR(used(&b.queue) == 1);
	stop(&b);
	unmake(&b);
}

/* The thread is at work on a request then, until `release_page` of its buffer. */
static int ask_for_a_held_page(struct bench *b)
{
	int held = hold_page(b->guest.ram + BUFFERS);

	ask(b, LENGTH, true);
	kick(&b->queue);
	write_all(b->feed, "x", 1);
	CHECK(readable(held, 10000));
	return held;
}

/* A stop or a drain that comes to nothing leaves a thread that goes on, or ends later. */
static void test_a_thread_that_the_host_keeps(void)
{
	struct bench b;
	int held;

	make(&b, 0);
	start(&b);
	held = ask_for_a_held_page(&b);
	CHECK_EQ(pv_rng_drain(b.rng, 1000000), -ETIMEDOUT);
	release_page(held, b.guest.ram + BUFFERS);
	WAIT_FOR(used(&b.queue) == 1);
	for (uint16_t turn = 2; turn < 10; turn++) {
		ask(&b, LENGTH, true);
		kick(&b.queue);
		CHECK_EQ(pv_rng_drain(b.rng, PV_FOREVER), 0);
		CHECK_EQ(pv_rng_drain(b.rng, PV_FOREVER), 0);
		CHECK_EQ(pv_virtqueue_in_flight(b.queue.ring), 0);
		start(&b);
		write_all(b.feed, "x", 1);
		WAIT_FOR(used(&b.queue) == turn);
	}
	held = ask_for_a_held_page(&b);
	CHECK_EQ(pv_rng_stop(b.rng, 1000000), -ETIMEDOUT);
	release_page(held, b.guest.ram + BUFFERS);
	stop(&b);
	unmake(&b);
}

int main(void)
{
	RUN(test_a_limit_holds_within_5_percent);
	RUN(test_an_answer_has_64_kib_at_most);
	RUN(test_a_kick_for_many_requests);
	RUN(test_requests_are_answered_as_the_source_has_bytes);
	RUN(test_it_stops_whatever_it_waits_for);
	RUN(test_a_source_that_only_says_it_has_bytes_is_not_asked_for_ever);
	RUN(test_a_failure_is_told_of_once);
	RUN(test_a_broken_device_stops_and_starts);
	RUN(test_a_thread_that_the_host_keeps);
	return 0;
}
