/* The virtqueue code through the driver of driver.h, both on this thread, the queue of 256 with
 * event indexes on, and beside it the least that a device could do on the same rings: read the
 * available ring and the descriptors, write the used ring, check nothing. Prints a line for each
 * kind of chain and batch: "direct|indirect BATCH CHECKED PLAIN", both in descriptors a second. */
#include "tests/virtio/driver.h"
#include "virtio/virtqueue.h"

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

/* What serves the chains of one batch. */
struct device {
	struct driver *driver;
	struct pv_virtqueue *queue;
	struct pv_chain *chain;
	uint16_t seen; /* of the available ring, by the plain one */
	uint64_t bytes;
};

static void serve_checked(struct device *d)
{
	struct pv_virtqueue *queue = d->queue;

	do {
		pv_virtqueue_disable_kicks(queue);
		while (pv_virtqueue_pop(queue, d->chain) == 1)
			CHECK_EQ(pv_virtqueue_push(queue, d->chain->head, 4097), 0);
		pv_virtqueue_publish(queue);
		(void)pv_virtqueue_needs_notify(queue);
	} while (pv_virtqueue_enable_kicks(queue));
}

/* The bytes are summed up so that every descriptor has to be read. */
static void walk_plainly(struct device *d, const struct pv_desc *table, uint16_t index)
{
	const struct pv_desc *desc;

	do {
		desc = &table[index];
		index = desc->next;
		if (desc->flags & PV_DESC_INDIRECT)
			walk_plainly(d, (const void *)(d->driver->ram + desc->address), 0);
		else
			d->bytes += desc->address + desc->length;
	} while (desc->flags & PV_DESC_NEXT);
}

static void serve_plainly(struct device *d)
{
	struct driver *driver = d->driver;
	struct pv_used *used = (struct pv_used *)(void *)(driver->ram + driver->config.used);
	uint16_t idx = __atomic_load_n(&driver->avail->idx, __ATOMIC_ACQUIRE);

	for (; d->seen != idx; d->seen++) {
		uint16_t head = driver->avail->ring[d->seen % SIZE];

		walk_plainly(d, driver->desc, head);
		used->ring[d->seen % SIZE] = (struct pv_used_elem){head, 4097};
	}
	__atomic_store_n(&used->idx, idx, __ATOMIC_RELEASE);
}

static uint64_t round_trip(struct device *d, void (*serve)(struct device *), size_t buffers,
                           unsigned batch)
{
	uint64_t chains = 0;
	uint32_t length;
	uint16_t head;

	for (unsigned i = 0; i < batch; i++)
		offer(d->driver, buffers);
	(void)driver_publish(d->driver);
	serve(d);
	while (driver_collect(d->driver, &head, &length))
		chains++;
	(void)driver_enable_interrupts(d->driver);
	return chains;
}

/* Descriptors a second. */
static double rate(void (*serve)(struct device *), int indirect, unsigned batch)
{
	struct driver driver;
	struct device device = {.driver = &driver, .chain = malloc(sizeof(*device.chain))};
	uint64_t chains = 0, start, spent;
	size_t buffers = driver_init(&driver, SIZE, 1, indirect, (size_t)SIZE * 4608);

	CHECK(device.chain);
	CHECK_EQ(pv_virtqueue_new(driver.memory, &driver.config, &device.queue), 0);
	start = cpu_ns();
	do {
		for (unsigned i = 0; i < ROUNDS; i++)
			chains += round_trip(&device, serve, buffers, batch);
		spent = cpu_ns() - start;
	} while (spent < RUN_NS);
	CHECK_EQ(chains % batch, 0);
	CHECK(serve == serve_checked || device.bytes > 0);
	pv_virtqueue_free(device.queue);
	driver_destroy(&driver);
	free(device.chain);
	return (double)(chains * SEGMENTS) * 1e9 / (double)spent;
}

int main(void)
{
	static const unsigned BATCHES[] = {1, 8, 64};

	for (int indirect = 0; indirect < 2; indirect++) {
		for (unsigned i = 0; i < sizeof(BATCHES) / sizeof(BATCHES[0]); i++) {
			double checked = rate(serve_checked, indirect, BATCHES[i]);
			double plain = rate(serve_plainly, indirect, BATCHES[i]);

			printf("%s %u %.0f %.0f\n", indirect ? "indirect" : "direct", BATCHES[i],
			       checked, plain);
		}
	}
	return 0;
}
