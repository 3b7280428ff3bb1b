/* A device without a backend answers whatever it is asked with an error, and takes over from another
 * worker in the middle of a ring. */
#include "virtio/vacant.h"

#include <errno.h>
#include <linux/fuse.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>

#include "tests/check.h"
#include "tests/virtio/driver.h"
#include "tests/virtio/reason.h"
#include "thread_internal.h"
#include "virtio/iov_internal.h"
#include "virtio/irq.h"

enum { SIZE = 16, QUEUES = 3, EXTRA = 64 * 1024, PATIENCE_MS = 20000, UNANSWERED = 0xaa };

static _Alignas(4096) unsigned char page[4096];

struct bench {
	struct driver drivers[QUEUES];
	size_t data[QUEUES]; /* the offset of each one's spare bytes */
	struct pv_queue queues[QUEUES];
	struct pv_virtio_irq *irq;
	int irq_fd, broken_fd;
	struct pv_vacant *vacant;
};

static void make(struct bench *b, int event_idx)
{
	memset(b, 0, sizeof(*b));
	memset(page, 0, sizeof(page));
	b->irq_fd = eventfd(0, EFD_NONBLOCK);
	b->broken_fd = eventfd(0, EFD_NONBLOCK);
	CHECK_EQ(pv_virtio_irq_new(page, b->irq_fd, b->broken_fd, &b->irq), 0);
	for (unsigned i = 0; i < QUEUES; i++) {
		struct driver *d = &b->drivers[i];

		b->data[i] = driver_init(d, SIZE, event_idx, 1, EXTRA);
		CHECK_EQ(pv_virtqueue_new(d->memory, &d->config, &b->queues[i].ring), 0);
		b->queues[i].kick_fd = eventfd(0, EFD_NONBLOCK);
		(void)driver_enable_interrupts(d);
	}
}

static void destroy(struct bench *b)
{
	for (unsigned i = 0; i < QUEUES; i++) {
		pv_virtqueue_free(b->queues[i].ring);
		close(b->queues[i].kick_fd);
		driver_destroy(&b->drivers[i]);
	}
	pv_virtio_irq_free(b->irq);
	close(b->irq_fd);
	close(b->broken_fd);
}

static void start(struct bench *b)
{
	CHECK_EQ(pv_vacant_start(PV_VACANT_BLOCK, b->queues, QUEUES, b->irq, &b->vacant), 0);
}

/* A read of `length` bytes, which are followed by the status byte in the same segment, the
 * `place`th of 512 bytes. */
static uint8_t *offer(struct bench *b, unsigned queue, unsigned place, uint32_t length)
{
	struct driver *d = &b->drivers[queue];
	size_t room = b->data[queue] + 512 * (size_t)(place + 1);
	struct pv_desc segments[] = {
		{.address = b->data[queue], .length = sizeof(struct virtio_blk_outhdr)},
		{.address = room, .length = length + 1, .flags = PV_DESC_WRITE},
	};
	uint8_t *status = d->ram + room + length;

	*status = UNANSWERED;
	(void)driver_add_indirect(d, segments, 2);
	return status;
}

static void kick(struct bench *b, unsigned queue)
{
	if (driver_publish(&b->drivers[queue]))
		CHECK_EQ(eventfd_write(b->queues[queue].kick_fd, 1), 0);
}

static void wait_readable(int fd)
{
	struct pollfd wanted = {.fd = fd, .events = POLLIN};

	CHECK_EQ(poll(&wanted, 1, PATIENCE_MS), 1);
}

/* Wait for the next answer of a queue; its length in the used ring. */
static uint32_t collect(struct bench *b, unsigned queue)
{
	struct driver *d = &b->drivers[queue];
	uint32_t length;
	uint16_t head;
	eventfd_t count;

	while (!driver_collect(d, &head, &length)) {
		if (driver_enable_interrupts(d))
			continue;
		wait_readable(b->irq_fd);
		CHECK_EQ(eventfd_read(b->irq_fd, &count), 0);
	}
	return length;
}

static void test_every_request_is_answered(int event_idx)
{
	struct bench b;

	make(&b, event_idx);
	start(&b);
	for (unsigned round = 0; round < 200; round++) {
		unsigned queue = round % QUEUES;
		uint32_t length = round % 2 ? 4096 : 0;
		uint8_t *status = offer(&b, queue, 0, length);

		kick(&b, queue);
		CHECK_EQ(collect(&b, queue), length + 1);
		CHECK_EQ(*status, VIRTIO_BLK_S_IOERR);
	}
	CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
	CHECK_EQ(pv_virtio_irq_is_broken(b.irq), 0);
	destroy(&b);
}

static void test_what_was_there_before_is_answered(void)
{
	struct bench b;
	uint8_t *status[QUEUES];

	make(&b, 1);
	for (unsigned i = 0; i < QUEUES; i++) {
		status[i] = offer(&b, i, 0, 512);
		(void)driver_publish(&b.drivers[i]);
	}
	start(&b);
	for (unsigned i = 0; i < QUEUES; i++) {
		(void)collect(&b, i);
		CHECK_EQ(*status[i], VIRTIO_BLK_S_IOERR);
	}
	CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
	destroy(&b);
}

/* A ring goes on under one worker after the other: nothing is lost, nothing answered twice. */
static void test_it_comes_and_goes_under_load(void)
{
	struct bench b;
	unsigned offered = 0, answered = 0;

	make(&b, 1);
	for (unsigned life = 0; life < 100; life++) {
		start(&b);
		for (unsigned i = 0; i < SIZE / 2; i++, offered++) {
			(void)offer(&b, 0, i, 0);
			kick(&b, 0);
		}
		if (life % 2)
			CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
		for (unsigned i = 0; life % 2 == 0 && i < SIZE / 2; i++, answered++)
			(void)collect(&b, 0);
		if (life % 2 == 0)
			CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
		else
			start(&b);
		for (; answered < offered; answered++)
			(void)collect(&b, 0);
		if (life % 2)
			CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
		CHECK_EQ(pv_virtqueue_in_flight(b.queues[0].ring), 0);
	}
	destroy(&b);
}

static void expect_broken(struct bench *b, const char *why)
{
	wait_readable(b->broken_fd);
	CHECK_EQ(pv_virtio_irq_is_broken(b->irq), 1);
	CHECK_EQ(pv_vacant_stop(b->vacant, PV_FOREVER), 0);
	/* The reason outlives who gave it. */
	check_reason(b->irq, why);
	pv_virtio_irq_reset(b->irq);
	CHECK_EQ(pv_virtio_irq_is_broken(b->irq), 0);
}

static void test_a_request_without_a_status_byte_breaks_the_device(void)
{
	struct bench b;
	struct pv_desc header;

	make(&b, 0);
	start(&b);
	header = (struct pv_desc){.address = b.data[1], .length = 16};
	(void)driver_add(&b.drivers[1], &header, 1);
	kick(&b, 1);
	expect_broken(&b, "a block request without a status byte");
	destroy(&b);
}

static void test_a_broken_ring_breaks_the_device(void)
{
	struct bench b;

	make(&b, 0);
	start(&b);
	b.drivers[2].avail->ring[0] = SIZE;
	b.drivers[2].position++;
	kick(&b, 2);
	expect_broken(&b, "head 16 in a queue of 16");
	destroy(&b);
}

/* As many of the first bytes as an honest driver may have asked for, and the status. */
static void test_of_a_huge_room_the_beginning_is_written(void)
{
	enum { TIMES = DRIVER_TABLE - 2, REST = 64 * 1024 };
	struct bench b;
	struct driver *d = &b.drivers[0];
	size_t first = PV_IOV_CLEAR_BYTES, data;
	struct pv_desc segments[DRIVER_TABLE];

	make(&b, 0);
	driver_destroy(d);
	pv_virtqueue_free(b.queues[0].ring);
	data = driver_init(d, SIZE, 0, 1, first + REST);
	CHECK_EQ(pv_virtqueue_new(d->memory, &d->config, &b.queues[0].ring), 0);
	memset(d->ram + data, UNANSWERED, first + REST);
	segments[0] = (struct pv_desc){.address = data, .length = 16};
	segments[1] = (struct pv_desc){data, (uint32_t)first, PV_DESC_WRITE, 0};
	for (unsigned i = 0; i < TIMES; i++)
		segments[2 + i] = (struct pv_desc){data + first, REST, PV_DESC_WRITE, 0};
	(void)driver_add_indirect(d, segments, DRIVER_TABLE);
	(void)driver_publish(d);
	start(&b);
	CHECK_EQ(collect(&b, 0), first);
	CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
	for (size_t i = 0; i < first; i++)
		CHECK_EQ(d->ram[data + i], 0);
	for (size_t i = first; i < first + REST - 1; i++)
		CHECK_EQ(d->ram[data + i], UNANSWERED);
	CHECK_EQ(d->ram[data + first + REST - 1], VIRTIO_BLK_S_IOERR);
	destroy(&b);
}

/* More than one interrupt: what is there is answered in batches, between which others have their
 * turn, and the end is looked at. */
static void test_a_turn_has_a_budget(void)
{
	enum { MANY = 256 };
	struct bench b;
	struct driver *d = &b.drivers[0];

	make(&b, 0);
	driver_destroy(d);
	pv_virtqueue_free(b.queues[0].ring);
	b.data[0] = driver_init(d, MANY, 0, 1, EXTRA);
	CHECK_EQ(pv_virtqueue_new(d->memory, &d->config, &b.queues[0].ring), 0);
	for (unsigned i = 0; i < MANY; i++)
		(void)offer(&b, 0, 0, 0);
	(void)driver_publish(d);
	start(&b);
	for (unsigned i = 0; i < MANY; i++)
		(void)collect(&b, 0);
	CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
	CHECK(pv_virtio_irq_count(b.irq) > 1);
	destroy(&b);
}

struct flood {
	struct driver *driver;
	uint8_t *status[SIZE];
	atomic_bool end;
};

/* Offer each request again as soon as it is answered. A guest's doing, in a guest's memory: the
 * device's plain accesses race with these, and that is all right. */
__attribute__((no_sanitize("thread"))) static void *offer_again(void *argument)
{
	struct flood *f = argument;
	uint16_t idx = SIZE;

	for (unsigned i = 0; !atomic_load(&f->end); i = (i + 1) % SIZE) {
		while (*(volatile uint8_t *)f->status[i] == UNANSWERED)
			if (atomic_load(&f->end))
				return NULL;
		*f->status[i] = UNANSWERED;
		__atomic_store_n(&f->driver->avail->idx, ++idx, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void test_a_driver_that_never_ends_keeps_nobody(void)
{
	struct bench b;
	struct flood flood = {.driver = &b.drivers[0]};
	pthread_t thread;

	make(&b, 0);
	for (unsigned i = 0; i < SIZE; i++)
		flood.status[i] = offer(&b, 0, i, 0);
	kick(&b, 0);
	start(&b);
	CHECK_EQ(pthread_create(&thread, NULL, offer_again, &flood), 0);
	/* The other queues have their turns. */
	for (unsigned i = 0; i < 20; i++) {
		(void)offer(&b, 1, i % SIZE, 0);
		kick(&b, 1);
		(void)collect(&b, 1);
	}
	CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
	atomic_store(&flood.end, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(pv_virtio_irq_is_broken(b.irq), 0);
	destroy(&b);
}

/* After somebody else has served three requests; one that wants no answer is among what is left. */
static void test_requests_of_fuse_are_answered_by_their_number(int event_idx)
{
	struct bench b;
	struct driver *d = &b.drivers[0];
	struct fuse_in_header *in;
	struct fuse_out_header *out;
	uint16_t head;
	uint32_t length;

	make(&b, event_idx);
	d->position = d->published = d->collected = 3;
	d->avail->idx = ((struct pv_used *)(void *)(d->ram + d->config.used))->idx = 3;
	in = (struct fuse_in_header *)(void *)(d->ram + b.data[0]);
	out = (struct fuse_out_header *)(void *)(d->ram + b.data[0] + 512);
	*in = (struct fuse_in_header){.len = sizeof(*in), .opcode = FUSE_FORGET, .unique = 7};
	struct pv_desc segments[] = {
		{.address = b.data[0], .length = sizeof(*in)},
		{.address = b.data[0] + 512, .length = 64, .flags = PV_DESC_WRITE},
	};
	(void)driver_add(d, segments, 1);
	(void)driver_add(d, segments, 2);
	(void)driver_publish(d);
	pv_virtqueue_seek(b.queues[0].ring, pv_virtqueue_served(b.queues[0].ring));
	CHECK_EQ(pv_vacant_start(PV_VACANT_FS, b.queues, 1, b.irq, &b.vacant), 0);
	CHECK_EQ(collect(&b, 0), 0);
	while (!driver_collect(d, &head, &length))
		if (!driver_enable_interrupts(d))
			wait_readable(b.irq_fd);
	CHECK_EQ(length, sizeof(*out));
	CHECK_EQ(out->len, sizeof(*out));
	CHECK_EQ(out->error, -ENOTCONN);
	CHECK_EQ(out->unique, 7);
	CHECK_EQ(pv_vacant_stop(b.vacant, PV_FOREVER), 0);
	CHECK_EQ(pv_virtio_irq_is_broken(b.irq), 0);
	destroy(&b);
}

static void test_numbers_of_queues_that_cannot_be(void)
{
	struct pv_queue queue = {.ring = NULL, .kick_fd = -1};
	struct pv_vacant *vacant = NULL;

	CHECK_EQ(pv_vacant_start(PV_VACANT_BLOCK, &queue, 0, NULL, &vacant), -EINVAL);
	CHECK_EQ(pv_vacant_start(PV_VACANT_FS, &queue, PV_VACANT_QUEUES + 1, NULL, &vacant), -EINVAL);
	CHECK(!vacant);
	CHECK_EQ(pv_vacant_stop(NULL, PV_FOREVER), 0);
}

int main(void)
{
	test_every_request_is_answered(0);
	test_every_request_is_answered(1);
	test_what_was_there_before_is_answered();
	test_it_comes_and_goes_under_load();
	test_a_request_without_a_status_byte_breaks_the_device();
	test_a_broken_ring_breaks_the_device();
	test_of_a_huge_room_the_beginning_is_written();
	test_a_turn_has_a_budget();
	test_a_driver_that_never_ends_keeps_nobody();
	test_requests_of_fuse_are_answered_by_their_number(0);
	test_requests_of_fuse_are_answered_by_their_number(1);
	test_numbers_of_queues_that_cannot_be();
	return 0;
}
