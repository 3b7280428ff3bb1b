/* What drivers are told by the event queue of a socket device, and the buffers that break it. */
#include <errno.h>
#include <linux/virtio_vsock.h>

#include "tests/virtio/guest.h"
#include "vsock/vsock.h"

enum { RAM = 1 << 16, BUFFER = RAM / 2, EVENT = sizeof(struct virtio_vsock_event) };

static const char RESET[EVENT]; /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET */
static const char UNFIT[] = "a buffer that an event does not fit";

struct bench {
	struct guest guest;
	struct queue event;
};

static void make(struct bench *b)
{
	guest_make(&b->guest, RAM);
	queue_make(&b->guest, &b->event, 0, false, false);
	memset(b->guest.ram + BUFFER, 0xff, RAM - BUFFER);
}

static void unmake(struct bench *b)
{
	queue_unmake(&b->event);
	guest_unmake(&b->guest);
}

/* Offer a buffer with so much to be read, and to be written in two pieces. */
static void offer(struct bench *b, uint32_t readable, uint32_t first, uint32_t second)
{
	uint16_t head = b->event.free;

	if (readable > 0)
		queue_describe(&b->event, BUFFER + 256, readable, false, first + second > 0);
	if (first > 0)
		queue_describe(&b->event, BUFFER, first, true, second > 0);
	if (second > 0)
		queue_describe(&b->event, BUFFER + 128, second, true, false);
	queue_put(&b->event, head);
	show(&b->event);
}

static int tell(struct bench *b)
{
	const struct pv_queue event = served(&b->event);

	return pv_vsock_tell_reset(&event, b->guest.irq);
}

static uint64_t interrupts(const struct bench *b)
{
	return pv_virtio_irq_count(b->guest.irq);
}

static void test_a_reset_is_told_of(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(tell(&b), 0);
	CHECK_EQ(interrupts(&b), 0);
	offer(&b, 0, EVENT, 0);
	CHECK_EQ(tell(&b), 1);
	CHECK_EQ(used(&b.event), 1);
	CHECK_EQ(b.event.used->ring[0].len, EVENT);
	CHECK_EQ(memcmp(b.guest.ram + BUFFER, RESET, EVENT), 0);
	CHECK_EQ(b.guest.ram[BUFFER + EVENT], (char)0xff);
	CHECK_EQ(interrupts(&b), 1);
	/* Once for each buffer. */
	CHECK_EQ(tell(&b), 0);
	CHECK_EQ(used(&b.event), 1);
	unmake(&b);
}

static void test_a_driver_that_wants_no_interrupt(void)
{
	struct bench b;

	make(&b);
	b.event.avail->flags = PV_AVAIL_NO_INTERRUPT;
	offer(&b, 0, 64, 0);
	CHECK_EQ(tell(&b), 1);
	CHECK_EQ(used(&b.event), 1);
	CHECK_EQ(interrupts(&b), 0);
	unmake(&b);
}

static void test_an_event_in_pieces(void)
{
	struct bench b;

	make(&b);
	offer(&b, 0, 1, EVENT - 1);
	CHECK_EQ(tell(&b), 1);
	CHECK_EQ(b.guest.ram[BUFFER], 0);
	CHECK_EQ(b.guest.ram[BUFFER + 1], (char)0xff);
	CHECK_EQ(memcmp(b.guest.ram + BUFFER + 128, RESET, EVENT - 1), 0);
	CHECK_EQ(b.guest.ram[BUFFER + 128 + EVENT - 1], (char)0xff);
	unmake(&b);
}

static void check_refused(uint32_t readable, uint32_t first, uint32_t second)
{
	struct bench b;

	make(&b);
	offer(&b, readable, first, second);
	CHECK_EQ(tell(&b), -EPROTO);
	guest_check_broken(&b.guest, UNFIT);
	CHECK_EQ(used(&b.event), 0);
	CHECK_EQ(b.guest.ram[BUFFER], (char)0xff);
	unmake(&b);
}

static void test_buffers_that_an_event_does_not_fit(void)
{
	check_refused(0, EVENT - 1, 0);
	check_refused(0, 1, EVENT - 2);
	check_refused(EVENT, 0, 0);
	check_refused(1, EVENT, 0);
}

static void test_a_ring_that_breaks_the_rules(void)
{
	struct bench b;

	make(&b);
	b.event.offered = QUEUE_SIZE + 1;
	show(&b.event);
	CHECK_EQ(tell(&b), -EPROTO);
	guest_check_broken(&b.guest, "avail idx is 65, 65 ahead in a queue of 64");
	CHECK_EQ(used(&b.event), 0);
	unmake(&b);
}

int main(void)
{
	RUN(test_a_reset_is_told_of);
	RUN(test_a_driver_that_wants_no_interrupt);
	RUN(test_an_event_in_pieces);
	RUN(test_buffers_that_an_event_does_not_fit);
	RUN(test_a_ring_that_breaks_the_rules);
	return 0;
}
