/* How many descriptors a second of one core's time go through the virtqueue: the mock driver and a
 * device that does nothing else take turns on one thread, so the driver's time is in the figure.
 * Prints a line for each kind of chain and batch: "direct|indirect BATCH DESCRIPTORS_PER_SECOND".
 *
 * sources: memory.c virtqueue.c virtqueue_chain.c */
#include "driver.h"
#include "virtqueue.h"

enum { SIZE = 256, SEGMENTS = 3, ROUNDS = 1000 };

static const uint64_t RUN_NS = 200000000;

/* Of this thread alone: what else the machine does is not in it. */
static uint64_t cpu_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* As of a block request: header, data, status. */
static void offer(struct driver *driver, uint64_t buffers)
{
	uint64_t at = buffers + (uint64_t)driver->free_head * 4608;
	const struct pv_desc segments[SEGMENTS] = {
		{at, 16, 0, 0},
		{at + 512, 4096, PV_DESC_WRITE, 0},
		{at + 16, 1, PV_DESC_WRITE, 0},
	};

	if (driver->config.indirect)
		driver_add_indirect(driver, segments, SEGMENTS);
	else
		driver_add(driver, segments, SEGMENTS);
}

static void serve(struct pv_virtqueue *queue, struct pv_chain *chain)
{
	do {
		pv_virtqueue_disable_kicks(queue);
		while (pv_virtqueue_pop(queue, chain) == 1)
			CHECK_EQ(pv_virtqueue_push(queue, chain->head, 4097), 0);
		pv_virtqueue_publish(queue);
		(void)pv_virtqueue_needs_notify(queue);
	} while (pv_virtqueue_enable_kicks(queue));
}

static uint64_t round_trip(struct driver *driver, struct pv_virtqueue *queue,
                           struct pv_chain *chain, size_t buffers, unsigned batch)
{
	uint64_t chains = 0;
	uint32_t length;
	uint16_t head;

	for (unsigned i = 0; i < batch; i++)
		offer(driver, buffers);
	(void)driver_publish(driver);
	serve(queue, chain);
	while (driver_collect(driver, &head, &length))
		chains++;
	(void)driver_enable_interrupts(driver);
	return chains;
}

static void run(int indirect, unsigned batch)
{
	struct driver driver;
	struct pv_virtqueue *queue;
	struct pv_chain *chain = malloc(sizeof(*chain));
	uint64_t chains = 0, start, spent;
	size_t buffers = driver_init(&driver, SIZE, 1, indirect, (size_t)SIZE * 4608);

	CHECK(chain);
	CHECK_EQ(pv_virtqueue_new(driver.memory, &driver.config, &queue), 0);
	start = cpu_ns();
	do {
		for (unsigned i = 0; i < ROUNDS; i++)
			chains += round_trip(&driver, queue, chain, buffers, batch);
		spent = cpu_ns() - start;
	} while (spent < RUN_NS);
	printf("%s %u %.0f\n", indirect ? "indirect" : "direct", batch,
	       (double)(chains * SEGMENTS) * 1e9 / (double)spent);
	pv_virtqueue_free(queue);
	driver_destroy(&driver);
	free(chain);
}

int main(void)
{
	for (int indirect = 0; indirect < 2; indirect++) {
		run(indirect, 1);
		run(indirect, 8);
		run(indirect, 64);
	}
	return 0;
}
