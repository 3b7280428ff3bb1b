/* The block device's data path: starting, stopping, several queues, batches and interrupts. */
#include "tests/block/device.h"
#include "tests/stuck.h"

#include <poll.h>

#define MS UINT64_C(1000000)

static void test_stop_completes_what_is_in_flight(void)
{
	struct device d;
	struct queue *q = &d.queues[0];

	make_started(&d, 0);
	for (unsigned round = 0; round < 30; round++) {
		uint8_t *status[SIZE / 4];
		uint16_t answered;

		for (unsigned i = 0; i < SIZE / 4; i++) {
			fill(data_at(&d, i * 4096), 4096, i + round);
			status[i] = request(&d, q, i, VIRTIO_BLK_T_OUT, i * 8, data_at(&d, i * 4096),
			                    4096);
		}
		kick(q);
		CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
		CHECK_EQ(pv_virtqueue_in_flight(q->ring), 0);
		answered = used(q);
		for (unsigned i = 0; i < SIZE / 4; i++) {
			char check[4096];

			CHECK_EQ(*status[i], i < answered ? VIRTIO_BLK_S_OK : UNANSWERED);
			CHECK_EQ(pread(d.file, check, 4096, i * 4096), 4096);
			CHECK(i >= answered || memcmp(check, data_at(&d, i * 4096), 4096) == 0);
		}
		stop(&d);
		start(&d, FEATURES, 1);
	}
	unmake(&d);
}

static void test_drain_of_an_image_that_hangs(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	char *page;
	uint8_t *stuck, *later;
	int held;

	make_started(&d, 0);
	page = data_at(&d, DATA - 4096);
	held = hold_page(page);
	stuck = request(&d, q, 0, VIRTIO_BLK_T_OUT, 0, page, 4096);
	kick(q);
	CHECK_EQ(poll(&(struct pollfd){.fd = held, .events = POLLIN}, 1, 10000), 1);
	CHECK_EQ(pv_block_drain(d.block, 20 * MS), -ETIMEDOUT);
	CHECK_EQ(used(q), 0);
	/* And it goes on. */
	release_page(held, page);
	later = request(&d, q, 1, VIRTIO_BLK_T_OUT, 8, data_at(&d, 0), 4096);
	kick(q);
	WAIT_FOR(used(q) == 2);
	CHECK_EQ(*stuck, VIRTIO_BLK_S_OK);
	CHECK_EQ(*later, VIRTIO_BLK_S_OK);
	CHECK_EQ(pv_block_drain(d.block, 10000 * MS), 0);
	/* What comes now is left to who serves the queue next. */
	request(&d, q, 2, VIRTIO_BLK_T_OUT, 8, data_at(&d, 0), 4096);
	kick(q);
	nanosleep(&(struct timespec){.tv_nsec = 20 * MS}, NULL);
	CHECK_EQ(used(q), 2);
	unmake(&d);
}

/* What hangs is given up; its device is whole again once the host is. */
static void test_stop_of_an_image_that_hangs(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	char *page;
	uint8_t *stuck;
	int held;

	make_started(&d, 0);
	page = data_at(&d, DATA - 4096);
	held = hold_page(page);
	stuck = request(&d, q, 0, VIRTIO_BLK_T_OUT, 0, page, 4096);
	kick(q);
	CHECK_EQ(poll(&(struct pollfd){.fd = held, .events = POLLIN}, 1, 10000), 1);
	CHECK_EQ(pv_block_stop(d.block, 20 * MS), -ETIMEDOUT);
	CHECK_EQ(pv_block_stop(d.block, 0), -ETIMEDOUT);
	release_page(held, page);
	CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
	/* The driver was not waited for, and is told nothing. */
	CHECK_EQ(used(q), 0);
	CHECK_EQ(*stuck, UNANSWERED);
	CHECK_EQ(pv_virtio_irq_count(d.guest.irq), 0);
	stop(&d);
	start(&d, FEATURES, 1);
	check_lives(&d);
	unmake(&d);
}

/* A request that was taken is waited for, however new it is: it takes a while to be read. */
static void test_drain_of_what_was_just_taken(void)
{
	enum { ROOM = 4 << 20 };
	struct device d;
	struct queue *q = &d.queues[0];

	make_started(&d, 0);
	for (unsigned round = 0; round < 100; round++) {
		char *data = data_at(&d, 2 * DATA);
		struct part parts[] = {{header(&d, 0, VIRTIO_BLK_T_OUT, 0), 16, false},
		                       {data, 512, false},
		                       {data, ROOM, true},
		                       {status_byte(&d, 0), 1, true}};

		offer(&d, q, parts, 4);
		kick(q);
		usleep(10 * round);
		CHECK_EQ(pv_block_drain(d.block, PV_FOREVER), 0);
		CHECK_EQ(pv_virtqueue_in_flight(q->ring), 0);
		pv_block_resume(d.block);
		WAIT_FOR(used(q) == q->offered);
	}
	unmake(&d);
}

/* And none is taken afterwards. */
static void test_drain_amid_requests(void)
{
	struct device d;
	struct flood flood;

	make_started(&d, 0);
	start_flood(&flood, &d, 0, VIRTIO_BLK_T_FLUSH);
	for (unsigned round = 0; round < 100; round++) {
		CHECK_EQ(pv_block_drain(d.block, PV_FOREVER), 0);
		CHECK_EQ(pv_virtqueue_in_flight(d.queues[0].ring), 0);
		pv_block_resume(d.block);
	}
	CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
	end_flood(&flood);
	unmake(&d);
}

static void test_several_queues_at_once(void)
{
	struct pv_block_config config = {.fd = -1};
	struct pv_block_stats stats;
	struct device d;

	make(&d, &config);
	start(&d, FEATURES, QUEUES);
	for (unsigned round = 0; round < 50; round++) {
		for (unsigned i = 0; i < QUEUES * 16; i++) {
			char *data = data_at(&d, 4 * DATA + i * 2048);

			fill(data, 2048, i + round);
			request(&d, &d.queues[i % QUEUES], i,
			        round % 2 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT,
			        round % 2 ? i * 4 : i * 4, data, 2048);
			if (i % 8 < QUEUES)
				kick(&d.queues[i % QUEUES]);
		}
		for (unsigned i = 0; i < QUEUES; i++) {
			kick(&d.queues[i]);
			WAIT_FOR(used(&d.queues[i]) == d.queues[i].offered);
		}
		for (unsigned i = 0; round % 2 && i < QUEUES * 16; i++) {
			char check[2048];

			fill(check, 2048, i + round - 1);
			CHECK_EQ(memcmp(check, data_at(&d, 4 * DATA + i * 2048), 2048), 0);
		}
	}
	pv_block_stats(d.block, &stats);
	CHECK_EQ(stats.reads, 25 * QUEUES * 16);
	CHECK_EQ(stats.writes, 25 * QUEUES * 16);
	CHECK_EQ(stats.bytes_read, stats.reads * 2048);
	CHECK_EQ(stats.errors, 0);
	CHECK_EQ(stats.interrupts, pv_virtio_irq_count(d.guest.irq));
	CHECK(stats.interrupts > 0 && stats.interrupts <= stats.reads + stats.writes);
	unmake(&d);
}

static void test_a_batch_has_one_interrupt(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	struct pv_block_stats stats;

	/* Answered without the file, so that the whole batch is one. */
	make_started(&d, 0);
	stop(&d);
	make_queue(&d, 0);
	for (unsigned i = 0; i < 16; i++)
		request(&d, q, i, VIRTIO_BLK_T_GET_ID, 0, data_at(&d, i * 32), 20);
	struct pv_queue served = {q->ring, q->kick_fd};
	CHECK_EQ(pv_block_start(d.block, FEATURES, &served, 1, d.guest.irq), 0);
	WAIT_FOR(used(q) == 16);
	CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
	pv_block_stats(d.block, &stats);
	CHECK_EQ(stats.others, 16);
	CHECK_EQ(stats.interrupts, 1);
	q->avail->flags = PV_AVAIL_NO_INTERRUPT;
	CHECK_EQ(pv_block_start(d.block, FEATURES, &served, 1, d.guest.irq), 0);
	ask(&d, VIRTIO_BLK_T_GET_ID, 0, data_at(&d, 0), 20, NULL);
	CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
	pv_block_stats(d.block, &stats);
	CHECK_EQ(stats.interrupts, 1);
	CHECK_EQ(stats.suppressed, 1);
	unmake(&d);
}

/* More than one interrupt: what is there is taken in batches, between which others on the thread
 * have their turn, and the end is looked at. */
static void test_a_turn_has_a_budget(void)
{
	enum { MANY = 12, ROOM = 6 << 20, UNSUPPORTED = 99 };
	struct device d;
	struct queue *q = &d.queues[0];
	struct pv_queue served;

	make_started(&d, 0);
	stop(&d);
	make_queue(&d, 0);
	for (unsigned i = 0; i < MANY; i++) {
		struct part parts[] = {{header(&d, i, UNSUPPORTED, 0), 16, false},
		                       {data_at(&d, 2 * DATA), ROOM, true},
		                       {status_byte(&d, i), 1, true}};

		offer(&d, q, parts, 3);
	}
	served = (struct pv_queue){q->ring, q->kick_fd};
	CHECK_EQ(pv_block_start(d.block, FEATURES, &served, 1, d.guest.irq), 0);
	WAIT_FOR(used(q) == MANY);
	CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
	CHECK(pv_virtio_irq_count(d.guest.irq) > 1);
	unmake(&d);
}

static void test_started_again_and_again(void)
{
	struct device d;

	make_started(&d, 0);
	for (unsigned i = 0; i < 100; i++) {
		check_lives(&d);
		stop(&d);
		start(&d, FEATURES, 1);
	}
	unmake(&d);
}

static void run_all(void)
{
	RUN(test_stop_completes_what_is_in_flight);
	RUN(test_drain_of_an_image_that_hangs);
	RUN(test_stop_of_an_image_that_hangs);
	RUN(test_drain_of_what_was_just_taken);
	RUN(test_drain_amid_requests);
	RUN(test_a_turn_has_a_budget);
	RUN(test_several_queues_at_once);
	RUN(test_a_batch_has_one_interrupt);
	RUN(test_started_again_and_again);
}

int main(void)
{
	on_each_engine(run_all);
	return 0;
}
