/* Block devices that share a thread: what happens to one is nothing to the other. */
#include <pthread.h>
#include <stdatomic.h>

#include "iothread/iothread.h"
#include "sandbox/filter.h"
#include "tests/block/device.h"
#include "tests/process.h"

static struct pv_iothread *make_thread(void)
{
	struct pv_iothread *thread;

	CHECK_EQ(pv_iothread_new(PV_SANDBOX_IOTHREAD, "shared", &thread), 0);
	return thread;
}

static void make_shared(struct device *d, struct pv_iothread *thread, uint32_t iops)
{
	struct pv_block_config config = {.fd = -1, .iops = iops, .iothread = thread};

	make(d, &config);
}

static void test_one_thread_for_all_queues_of_all_devices(void)
{
	struct pv_iothread *thread = make_thread();
	struct device d[3];
	unsigned alone;

	for (unsigned i = 0; i < 3; i++)
		make_shared(&d[i], thread, 0);
	start(&d[0], FEATURES, 1);
	alone = threads();
	stop(&d[0]);
	for (unsigned i = 0; i < 3; i++)
		start(&d[i], FEATURES, QUEUES);
	/* A request that no engine takes part in. */
	for (unsigned i = 0; i < 3; i++)
		for (unsigned q = 0; q < QUEUES; q++) {
			request(&d[i], &d[i].queues[q], q, VIRTIO_BLK_T_GET_ID, 0,
			        data_at(&d[i], q * 32), 20);
			kick(&d[i].queues[q]);
			WAIT_FOR(used(&d[i].queues[q]) == 1);
			CHECK_EQ(memcmp(data_at(&d[i], q * 32), "serial number 12345", 20), 0);
		}
	CHECK_EQ(threads(), alone);
	for (unsigned i = 0; i < 3; i++)
		unmake(&d[i]);
	WAIT_FOR(threads() < alone);
	pv_iothread_free(thread);
}

static void test_each_has_its_own_file(void)
{
	struct pv_iothread *thread = make_thread();
	struct device d[2];

	for (unsigned i = 0; i < 2; i++) {
		make_shared(&d[i], thread, 0);
		start(&d[i], FEATURES, 1);
	}
	for (unsigned round = 0; round < 50; round++) {
		for (unsigned i = 0; i < 2; i++) {
			fill(data_at(&d[i], 0), 4096, 2 * round + i);
			request(&d[i], &d[i].queues[0], 0, VIRTIO_BLK_T_OUT, 8, data_at(&d[i], 0),
			        4096);
			kick(&d[i].queues[0]);
		}
		for (unsigned i = 0; i < 2; i++) {
			char wanted[4096], found[4096];

			WAIT_FOR(used(&d[i].queues[0]) == d[i].queues[0].offered);
			fill(wanted, 4096, 2 * round + i);
			CHECK_EQ(pread(d[i].file, found, 4096, 4096), 4096);
			CHECK_EQ(memcmp(wanted, found, 4096), 0);
		}
	}
	unmake(&d[0]);
	check_lives(&d[1]);
	unmake(&d[1]);
	pv_iothread_free(thread);
}

static void test_one_breaks_and_the_other_lives(void)
{
	struct pv_iothread *thread = make_thread();
	struct device d[2];

	for (unsigned i = 0; i < 2; i++) {
		make_shared(&d[i], thread, 0);
		start(&d[i], FEATURES, 1);
	}
	d[0].queues[0].avail->ring[0] = SIZE;
	__atomic_store_n(&d[0].queues[0].avail->idx, 1, __ATOMIC_RELEASE);
	kick(&d[0].queues[0]);
	check_broken(&d[0], "head 64 in a queue of 64");
	check_lives(&d[1]);
	CHECK(!readable(d[1].guest.broken_fd, 0));
	stop(&d[0]);
	pv_virtio_irq_reset(d[0].guest.irq);
	start(&d[0], FEATURES, 1);
	check_lives(&d[0]);
	check_lives(&d[1]);
	unmake(&d[0]);
	unmake(&d[1]);
	pv_iothread_free(thread);
}

static void test_one_waits_for_a_token_and_the_other_does_not(void)
{
	struct pv_iothread *thread = make_thread();
	struct device d[2];
	struct queue *q = &d[0].queues[0];

	make_shared(&d[0], thread, 1);
	make_shared(&d[1], thread, 0);
	for (unsigned i = 0; i < 2; i++)
		start(&d[i], FEATURES, 1);
	/* Enough for a minute. */
	for (unsigned i = 0; i < SIZE / 4; i++)
		request(&d[0], q, i, VIRTIO_BLK_T_IN, 0, data_at(&d[0], i * 512), 512);
	kick(q);
	WAIT_FOR(used(q) == 1);
	for (unsigned i = 0; i < 100; i++)
		check_lives(&d[1]);
	CHECK(used(q) < SIZE / 4);
	unmake(&d[0]);
	check_lives(&d[1]);
	unmake(&d[1]);
	pv_iothread_free(thread);
}

static void test_two_engines_cannot_share(void)
{
	struct pv_iothread *thread = make_thread();
	struct device d, other;
	struct pv_queue served;

	make_shared(&d, thread, 0);
	start(&d, FEATURES, 1);
	engine_flag ^= PV_BLOCK_THREADS;
	make_shared(&other, thread, 0);
	engine_flag ^= PV_BLOCK_THREADS;
	make_queue(&other, 0);
	served = (struct pv_queue){other.queues[0].ring, other.queues[0].kick_fd};
	CHECK_EQ(pv_block_start(other.block, FEATURES, &served, 1, other.guest.irq), -EINVAL);
	check_lives(&d);
	stop(&d);
	/* The thread has ended, and may be of the other kind now. */
	CHECK_EQ(pv_block_start(other.block, FEATURES, &served, 1, other.guest.irq), 0);
	check_lives(&other);
	unmake(&d);
	unmake(&other);
	pv_iothread_free(thread);
}

static void test_one_is_flooded_and_the_other_served(void)
{
	enum { UNSUPPORTED = 99 };
	struct pv_iothread *thread = make_thread();
	struct device d[2];
	struct flood flood;

	for (unsigned i = 0; i < 2; i++)
		make_shared(&d[i], thread, 0);
	start(&d[0], FEATURES, 1);
	start(&d[1], FEATURES, 2);
	start_flood(&flood, &d[0], 0, UNSUPPORTED);
	for (unsigned i = 0; i < 20; i++)
		check_lives(&d[1]);
	CHECK_EQ(pv_block_drain(d[1].block, PV_FOREVER), 0);
	stop(&d[1]);
	/* And the flooded one ends. */
	CHECK_EQ(pv_block_drain(d[0].block, PV_FOREVER), 0);
	pv_block_resume(d[0].block);
	CHECK_EQ(pv_block_stop(d[0].block, PV_FOREVER), 0);
	end_flood(&flood);
	CHECK_EQ(pv_virtio_irq_is_broken(d[0].guest.irq), 0);
	unmake(&d[0]);
	unmake(&d[1]);
	pv_iothread_free(thread);
}

struct kicker {
	pthread_t thread;
	int fd;
	atomic_bool end;
};

static void *kick_on(void *argument)
{
	struct kicker *k = argument;

	while (!atomic_load(&k->end))
		CHECK_EQ(eventfd_write(k->fd, 1), 0);
	return NULL;
}

static void test_come_and_go_amid_kicks(void)
{
	struct pv_iothread *thread = make_thread();
	struct device d[2];

	make_shared(&d[0], thread, 0);
	make_shared(&d[1], thread, 0);
	start(&d[0], FEATURES, 1);
	for (unsigned round = 0; round < 40; round++) {
		struct kicker kicker = {.end = false};

		start(&d[1], FEATURES, 2);
		kicker.fd = d[1].queues[1].kick_fd;
		CHECK_EQ(pthread_create(&kicker.thread, NULL, kick_on, &kicker), 0);
		check_lives(&d[1]);
		CHECK_EQ(pv_block_stop(d[1].block, PV_FOREVER), 0);
		atomic_store(&kicker.end, true);
		CHECK_EQ(pthread_join(kicker.thread, NULL), 0);
		stop(&d[1]);
		check_lives(&d[0]);
	}
	unmake(&d[0]);
	unmake(&d[1]);
	pv_iothread_free(thread);
}

static void run_all(void)
{
	RUN(test_one_thread_for_all_queues_of_all_devices);
	RUN(test_each_has_its_own_file);
	RUN(test_one_breaks_and_the_other_lives);
	RUN(test_one_waits_for_a_token_and_the_other_does_not);
	RUN(test_two_engines_cannot_share);
	RUN(test_one_is_flooded_and_the_other_served);
	RUN(test_come_and_go_amid_kicks);
}

int main(void)
{
	on_each_engine(run_all);
	return 0;
}
