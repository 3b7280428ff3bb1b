/* The barriers of a virtqueue, by the races that they are for: a side that shows something and then
 * looks whether the other wants to be told of it, and one that says so and then looks once more. */
#include "tests/race.h"
#include "tests/virtio/driver.h"
#include "virtio/virtqueue.h"

enum { DRIVER, DEVICE };

struct bench {
	struct driver driver;
	struct pv_virtqueue *queue;
	struct pv_chain chain;
	struct pv_desc segment;
};

static void bench_init(struct bench *bench, int event_idx)
{
	memset(bench, 0, sizeof(*bench));
	bench->segment.address = driver_init(&bench->driver, 4, event_idx, 0, 64);
	bench->segment.length = 64;
	CHECK_EQ(pv_virtqueue_new(bench->driver.memory, &bench->driver.config, &bench->queue), 0);
}

static void bench_destroy(struct bench *bench)
{
	pv_virtqueue_free(bench->queue);
	driver_destroy(&bench->driver);
}

static void collect_all(struct bench *bench)
{
	uint32_t length;
	uint16_t head;

	while (driver_collect(&bench->driver, &head, &length))
		;
}

static void pop_and_push(struct bench *bench)
{
	CHECK_EQ(pv_virtqueue_pop(bench->queue, &bench->chain), 1);
	CHECK_EQ(pv_virtqueue_push(bench->queue, bench->chain.head, 0), 0);
}

/* One chain is there, served and not shown, of which the driver does not want to know. */
static void before_interrupt(void *opaque, int side)
{
	struct bench *bench = opaque;

	if (side == DEVICE) {
		pop_and_push(bench);
		return;
	}
	collect_all(bench);
	driver_disable_interrupts(&bench->driver);
	(void)driver_add(&bench->driver, &bench->segment, 1);
	(void)driver_publish(&bench->driver);
}

static int wait_for_interrupt(void *opaque, int side)
{
	struct bench *bench = opaque;

	if (side == DRIVER)
		return driver_enable_interrupts(&bench->driver);
	pv_virtqueue_publish(bench->queue);
	return pv_virtqueue_needs_notify(bench->queue);
}

/* One chain is there that is not shown, and the device does not want to know of it. */
static void before_kick(void *opaque, int side)
{
	struct bench *bench = opaque;

	if (side == DEVICE) {
		pv_virtqueue_disable_kicks(bench->queue);
		if (bench->driver.position > 1)
			pop_and_push(bench);
		CHECK_EQ(pv_virtqueue_pop(bench->queue, &bench->chain), 0);
		pv_virtqueue_publish(bench->queue);
		return;
	}
	collect_all(bench);
	(void)driver_add(&bench->driver, &bench->segment, 1);
}

static int wait_for_kick(void *opaque, int side)
{
	struct bench *bench = opaque;

	return side == DRIVER ? driver_publish(&bench->driver)
	                      : pv_virtqueue_enable_kicks(bench->queue);
}

static void test_no_interrupt_is_lost(void)
{
	struct bench bench;

	for (int event_idx = 0; event_idx < 2; event_idx++) {
		bench_init(&bench, event_idx);
		race(before_interrupt, wait_for_interrupt, &bench);
		bench_destroy(&bench);
	}
}

static void test_no_kick_is_lost(void)
{
	struct bench bench;

	for (int event_idx = 0; event_idx < 2; event_idx++) {
		bench_init(&bench, event_idx);
		race(before_kick, wait_for_kick, &bench);
		bench_destroy(&bench);
	}
}

int main(void)
{
	RUN(test_no_interrupt_is_lost);
	RUN(test_no_kick_is_lost);
	return 0;
}
