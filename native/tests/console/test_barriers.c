/* The orders of stores and loads between a device and its console's thread, by the races that they
 * are for: one of the two sees the other, or the device waits for ever. */
#include <sys/eventfd.h>

#include "console/thread.c"
#include "tests/race.h"

enum { DEVICE, THREAD };

struct bench {
	struct pv_console *console;
	int room_told; /* how often the device was told of room */
};

static void on_event(void *device, enum pv_console_event event)
{
	struct bench *bench = device;

	bench->room_told += event == PV_CONSOLE_ROOM;
}

/* A byte less than half of the ring is free. */
static void before_room(void *opaque, int side)
{
	struct bench *bench = opaque;

	if (side == DEVICE)
		while (pv_console_half_free(bench->console))
			CHECK_EQ(pv_ring_put(bench->console->output, 'x'), 0);
	else
		atomic_store(&bench->console->want_room, false);
}

static int wait_for_room(void *opaque, int side)
{
	struct bench *bench = opaque;
	int before = bench->room_told;

	if (side == DEVICE)
		return pv_console_ready(bench->console);
	drop_output(bench->console, 1);
	return bench->room_told > before;
}

/* There is nothing to write, and the thread is about to sleep. */
static void before_output(void *opaque, int side)
{
	struct bench *bench = opaque;
	struct pv_console *c = bench->console;
	eventfd_t value;

	if (side == DEVICE) {
		pv_ring_drop(c->output, pv_ring_used(c->output));
		(void)eventfd_read(c->event_fd, &value);
	} else {
		atomic_store(&c->wake_at, PV_CONSOLE_NEVER);
	}
}

static int wait_for_output(void *opaque, int side)
{
	struct bench *bench = opaque;
	struct pv_console *c = bench->console;

	if (side == DEVICE) {
		CHECK(pv_console_put(c, 'x'));
		return readable(c->event_fd, 0);
	}
	/* As sleep_until_event does. */
	atomic_store(&c->wake_at, 1);
	return choose_timeout(c, 1) == 0;
}

static void test_room_is_told_of(void)
{
	struct bench bench = {0};

	CHECK_EQ(pv_console_new(&bench.console), 0);
	pv_console_set_device(bench.console, on_event, &bench);
	race(before_room, wait_for_room, &bench);
	pv_console_free(bench.console);
}

static void test_output_wakes_the_thread(void)
{
	struct bench bench = {0};

	CHECK_EQ(pv_console_new(&bench.console), 0);
	race(before_output, wait_for_output, &bench);
	pv_console_free(bench.console);
}

int main(void)
{
	RUN(test_room_is_told_of);
	RUN(test_output_wakes_the_thread);
	return 0;
}
