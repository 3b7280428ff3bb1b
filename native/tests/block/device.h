/* A block device for C tests: real files, rings in memory, and the driver's side of them, which is
 * honest as far as a test wants it to be. */
#ifndef PV_TESTS_BLOCK_DEVICE_H
#define PV_TESTS_BLOCK_DEVICE_H

#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "iothread/io_internal.h"
#include "tests/virtio/guest.h"

enum { QUEUES = 4, SIZE = QUEUE_SIZE, RAM = 16 << 20, SECTORS = 2048, DATA = 64 * 1024 };
enum { FEATURES = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD |
                  1 << VIRTIO_BLK_F_WRITE_ZEROES };
/* What a status byte holds until the device has answered. */
enum { UNANSWERED = 0xaa };

struct device {
	struct guest guest;
	int file;
	struct pv_block *block;
	struct queue queues[QUEUES];
};

/* A part of a request's buffer. */
struct part {
	const void *data; /* in guest memory */
	uint32_t length;
	bool writable;
};

static uint32_t engine_flag; /* which engine the tests run on */

static inline char *data_at(struct device *d, uint32_t offset)
{
	return d->guest.ram + RAM / 2 + offset;
}

static inline void make_queue(struct device *d, unsigned index)
{
	queue_make(&d->guest, &d->queues[index], index, false, false);
}

static inline int make_file(uint64_t bytes)
{
	char name[] = "disk-XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);

	CHECK(fd >= 0);
	unlink(name);
	CHECK_EQ(ftruncate(fd, (off_t)bytes), 0);
	return fd;
}

static inline void start(struct device *d, uint64_t features, uint32_t queues)
{
	struct pv_queue queues_served[QUEUES];

	for (unsigned i = 0; i < queues; i++) {
		make_queue(d, i);
		queues_served[i] = served(&d->queues[i]);
	}
	CHECK_EQ(pv_block_start(d->block, features, queues_served, queues, d->guest.irq), 0);
	CHECK_EQ(pv_block_start(d->block, features, queues_served, queues, d->guest.irq), -EBUSY);
}

static inline void stop(struct device *d)
{
	CHECK_EQ(pv_block_stop(d->block, PV_FOREVER), 0);
	for (unsigned i = 0; i < QUEUES; i++)
		queue_unmake(&d->queues[i]);
}

/* A device that is not started; the caller may have changed the defaults in `config`. */
static inline void make(struct device *d, struct pv_block_config *config)
{
	memset(d, 0, sizeof(*d));
	guest_make(&d->guest, RAM);
	d->file = config->fd >= 0 ? config->fd : make_file(SECTORS * 512);
	config->fd = d->file;
	config->flags |= engine_flag;
	config->sectors = config->sectors ? config->sectors : SECTORS;
	config->offset_align = config->offset_align ? config->offset_align : 1;
	config->memory_align = config->memory_align ? config->memory_align : 1;
	memcpy(config->id, "serial number 12345", 20);
	CHECK_EQ(pv_block_new(config, &d->block), 0);
}

static inline void unmake(struct device *d)
{
	stop(d);
	pv_block_free(d->block);
	guest_unmake(&d->guest);
	close(d->file);
}

static inline void make_started(struct device *d, uint32_t flags)
{
	struct pv_block_config config = {.fd = -1, .flags = flags};

	make(d, &config);
	start(d, FEATURES, 1);
}

/* Put a chain into the ring; a kick shows it to the device. */
static inline void offer(struct device *d, struct queue *q, const struct part *parts,
                         unsigned count)
{
	uint16_t head = q->free;

	for (unsigned i = 0; i < count; i++)
		queue_describe(q, (uint64_t)((const char *)parts[i].data - d->guest.ram), parts[i].length,
		               parts[i].writable, i + 1 < count);
	queue_put(q, head);
	show(q);
}

static inline struct virtio_blk_outhdr *header(struct device *d, unsigned slot, uint32_t type,
                                               uint64_t sector)
{
	struct virtio_blk_outhdr *h = (struct virtio_blk_outhdr *)data_at(d, DATA) + slot;

	*h = (struct virtio_blk_outhdr){.type = type, .sector = sector};
	return h;
}

static inline uint8_t *status_byte(struct device *d, unsigned slot)
{
	uint8_t *status = (uint8_t *)data_at(d, DATA + 0x4000) + slot;

	*status = UNANSWERED;
	return status;
}

/* Offer a request of the usual form; return where its status will be. */
static inline uint8_t *request(struct device *d, struct queue *q, unsigned slot, uint32_t type,
                               uint64_t sector, void *data, uint32_t length)
{
	uint8_t *status = status_byte(d, slot);
	bool in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
	struct part parts[] = {{header(d, slot, type, sector), 16, false},
	                       {data, length, in},
	                       {status, 1, true}};

	if (length == 0)
		parts[1] = parts[2];
	offer(d, q, parts, length ? 3 : 2);
	return status;
}

/* The answer to one request, and what the used ring says was written. */
static inline uint8_t ask(struct device *d, uint32_t type, uint64_t sector, void *data,
                          uint32_t length, uint32_t *written)
{
	struct queue *q = &d->queues[0];
	uint8_t *status = request(d, q, 0, type, sector, data, length);

	kick(q);
	WAIT_FOR(used(q) == q->offered);
	if (written)
		*written = q->used->ring[(q->offered - 1) % SIZE].len;
	return *status;
}

static inline void check_lives(struct device *d)
{
	char *data = data_at(d, 0);

	CHECK_EQ(ask(d, VIRTIO_BLK_T_IN, 0, data, 512, NULL), VIRTIO_BLK_S_OK);
}

static inline void check_broken(struct device *d, const char *why)
{
	guest_check_broken(&d->guest, why);
}

/* A driver that offers each request again as soon as it is answered. */
struct flood {
	pthread_t thread;
	struct queue *queue;
	uint8_t *status[SIZE / 2];
	atomic_bool end;
};

/* A guest's doing, in a guest's memory: the device's plain accesses race with these, and that is
 * all right. */
__attribute__((no_sanitize("thread"))) static inline void *offer_again(void *argument)
{
	struct flood *f = argument;
	uint16_t idx = f->queue->offered;

	for (unsigned i = 0; !atomic_load(&f->end); i = (i + 1) % (SIZE / 2)) {
		while (*(volatile uint8_t *)f->status[i] == UNANSWERED)
			if (atomic_load(&f->end))
				return NULL;
		*f->status[i] = UNANSWERED;
		__atomic_store_n(&f->queue->avail->idx, ++idx, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* With requests of two descriptors, none of which was offered before. */
static inline void start_flood(struct flood *f, struct device *d, unsigned queue, uint32_t type)
{
	f->queue = &d->queues[queue];
	atomic_init(&f->end, false);
	for (unsigned i = 0; i < SIZE / 2; i++)
		f->status[i] = request(d, f->queue, i, type, 0, NULL, 0);
	for (unsigned i = SIZE / 2; i < SIZE; i++)
		f->queue->avail->ring[i] = f->queue->avail->ring[i - SIZE / 2];
	CHECK_EQ(pthread_create(&f->thread, NULL, offer_again, f), 0);
	kick(f->queue);
}

static inline void end_flood(struct flood *f)
{
	atomic_store(&f->end, true);
	CHECK_EQ(pthread_join(f->thread, NULL), 0);
}

static inline void check_bytes(const char *data, uint32_t length, char byte)
{
	for (uint32_t i = 0; i < length; i++)
		CHECK_EQ(data[i], byte);
}

/* Ask for ranges of zeroes, as many as go into `length` bytes, one after the other. */
static inline uint8_t zero(struct device *d, uint32_t type, uint64_t sector, uint32_t sectors,
                           uint32_t flags, uint32_t length)
{
	struct virtio_blk_discard_write_zeroes *range = (void *)data_at(d, 0);

	for (uint32_t i = 0; i < (length + 15) / 16; i++)
		range[i] = (struct virtio_blk_discard_write_zeroes){sector + i * sectors, sectors,
		                                                    flags};
	return ask(d, type, 0, range, length, NULL);
}

static inline void on_each_engine(void (*tests)(void))
{
	fprintf(stderr, "- io_uring\n");
	tests();
	engine_flag = PV_BLOCK_THREADS;
	fprintf(stderr, "- threads\n");
	tests();
}

#endif
