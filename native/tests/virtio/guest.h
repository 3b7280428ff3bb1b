/* The guest's side of a device under test: its memory, its registers, and queues of 64 entries
 * whose driver is honest as far as a test wants it to be. */
#ifndef PV_TESTS_GUEST_H
#define PV_TESTS_GUEST_H

#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "tests/check.h"
#include "tests/virtio/reason.h"
#include "virtio/irq.h"
#include "virtio/virtqueue_internal.h"

enum { QUEUE_SIZE = 64, QUEUE_STEP = 0x4000 };

struct guest {
	char *ram;
	size_t bytes;
	void *page; /* the device's registers */
	int irq_fd, broken_fd;
	struct pv_memory *memory;
	struct pv_virtio_irq *irq;
};

struct queue {
	struct pv_virtqueue *ring; /* NULL: the driver has not made it */
	struct pv_virtqueue_config config;
	struct pv_desc *desc;
	struct pv_avail *avail;
	struct pv_used *used;
	int kick_fd;
	uint16_t free; /* the next descriptor to use */
	uint16_t offered;
};

static inline void guest_make(struct guest *g, size_t bytes)
{
	const int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;

	g->bytes = bytes;
	g->ram = mmap(NULL, bytes, protection, flags, -1, 0);
	g->page = mmap(NULL, 4096, protection, flags, -1, 0);
	CHECK(g->ram != MAP_FAILED && g->page != MAP_FAILED);
	CHECK_EQ(pv_memory_new(&g->memory), 0);
	CHECK_EQ(pv_memory_add(g->memory, 0, bytes, g->ram), 0);
	g->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	g->broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK_EQ(pv_virtio_irq_new(g->page, g->irq_fd, g->broken_fd, &g->irq), 0);
}

static inline void guest_unmake(struct guest *g)
{
	pv_virtio_irq_free(g->irq);
	pv_memory_free(g->memory);
	munmap(g->page, 4096);
	munmap(g->ram, g->bytes);
	close(g->irq_fd);
	close(g->broken_fd);
}

/* The device broke for this reason, and its status says that it needs a reset. */
static inline void guest_check_broken(struct guest *g, const char *why)
{
	CHECK(readable(g->broken_fd, 10000));
	check_reason(g->irq, why);
	CHECK(__atomic_load_n((uint32_t *)((char *)g->page + 0x70), __ATOMIC_ACQUIRE) & 64);
}

/* Lay out the queue `index` anew, near the start of memory. */
static inline void queue_make(struct guest *g, struct queue *q, unsigned index, bool event_idx,
                              bool indirect)
{
	uint64_t base = index * (uint64_t)QUEUE_STEP;

	q->config = (struct pv_virtqueue_config){
		.desc = base,
		.avail = base + 0x1000,
		.used = base + 0x2000,
		.size = QUEUE_SIZE,
		.event_idx = event_idx,
		.indirect = indirect,
	};
	memset(g->ram + base, 0, QUEUE_STEP);
	CHECK_EQ(pv_virtqueue_new(g->memory, &q->config, &q->ring), 0);
	q->desc = (struct pv_desc *)(g->ram + q->config.desc);
	q->avail = (struct pv_avail *)(g->ram + q->config.avail);
	q->used = (struct pv_used *)(g->ram + q->config.used);
	q->free = q->offered = 0;
	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static inline void queue_unmake(struct queue *q)
{
	if (!q->ring)
		return;
	pv_virtqueue_free(q->ring);
	close(q->kick_fd);
	q->ring = NULL;
}

static inline struct pv_queue served(const struct queue *q)
{
	return (struct pv_queue){q->ring, q->kick_fd};
}

/* Describe the next part of a chain, the last one unless there is `more`. */
static inline void queue_describe(struct queue *q, uint64_t address, uint32_t length, bool writable,
                                  bool more)
{
	struct pv_desc *desc = &q->desc[q->free];

	q->free = (uint16_t)((q->free + 1) % QUEUE_SIZE);
	desc->address = address;
	desc->length = length;
	desc->flags = (uint16_t)((writable ? PV_DESC_WRITE : 0) | (more ? PV_DESC_NEXT : 0));
	desc->next = q->free;
}

/* Put the chain that begins at `head` into the ring, not yet shown to the device. */
static inline void queue_put(struct queue *q, uint16_t head)
{
	q->avail->ring[q->offered % QUEUE_SIZE] = head;
	q->offered++;
}

static inline void show(struct queue *q)
{
	__atomic_store_n(&q->avail->idx, q->offered, __ATOMIC_RELEASE);
}

static inline void kick(struct queue *q)
{
	CHECK_EQ(eventfd_write(q->kick_fd, 1), 0);
}

static inline uint16_t used(const struct queue *q)
{
	return __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE);
}

/* Bytes by the seed. */
static inline void fill(void *data, uint32_t length, unsigned seed)
{
	for (uint32_t i = 0; i < length; i++)
		((uint8_t *)data)[i] = (uint8_t)(i * 7 + i / 256 + seed);
}

#endif
