/* A driver that keeps no rule, for the fuzz targets of devices: guest memory with some queues in
 * it, indirect tables behind them, and the device's registers. */
#ifndef PV_FUZZ_DRIVER_H
#define PV_FUZZ_DRIVER_H

#include "fuzz/input.h"
#include "virtio/irq.h"

enum { RAM = 0x8000, TABLE_AT = 0x6000, SIZE = 8, QUEUE_STEP = 0x1000, QUEUES_MAX = 6 };
enum { TABLE_STEP = 0x80, CHAIN_DESCS = TABLE_STEP / sizeof(struct pv_desc) };

struct driver {
	uint8_t *ram; /* exactly as large as told, so that a byte too far is seen */
	void *page;
	struct pv_memory *memory;
	struct pv_virtio_irq *irq;
	struct pv_virtqueue *rings[QUEUES_MAX];
	uint8_t event_idx;
};

static inline void driver_init(struct driver *driver, uint8_t event_idx)
{
	driver->event_idx = event_idx;
	driver->ram = aligned_alloc(4096, RAM);
	driver->page = aligned_alloc(4096, 4096);
	REQUIRE(driver->ram && driver->page && pv_memory_new(&driver->memory) == 0);
	memset(driver->ram, 0, RAM);
	memset(driver->page, 0, 4096);
	REQUIRE(pv_memory_add(driver->memory, 0, RAM, driver->ram) == 0);
	REQUIRE(pv_virtio_irq_new(driver->page, -1, -1, &driver->irq) == 0);
}

/* Nothing serves its queues any more. */
static inline void driver_destroy(struct driver *driver)
{
	for (unsigned i = 0; i < QUEUES_MAX; i++)
		pv_virtqueue_free(driver->rings[i]);
	pv_virtio_irq_free(driver->irq);
	pv_memory_free(driver->memory);
	free(driver->ram);
	free(driver->page);
}

static inline struct pv_queue make_queue(struct driver *driver, unsigned queue)
{
	struct pv_virtqueue_config config = {
		.desc = queue * QUEUE_STEP,
		.avail = queue * QUEUE_STEP + 0x400,
		.used = queue * QUEUE_STEP + 0x800,
		.size = SIZE,
		.event_idx = driver->event_idx,
		.indirect = 1,
	};

	REQUIRE(pv_virtqueue_new(driver->memory, &config, &driver->rings[queue]) == 0);
	return (struct pv_queue){driver->rings[queue], -1};
}

/* Whether a segment that a device found is the guest's. */
static inline int inside(const struct driver *driver, const struct iovec *iov)
{
	const uint8_t *at = iov->iov_base;

	return iov->iov_len > 0 && at >= driver->ram && at + iov->iov_len <= driver->ram + RAM;
}

static inline void write_desc(struct driver *driver, struct input *input, size_t table, size_t mask)
{
	size_t place = table + (take(input, 1) & mask) * sizeof(struct pv_desc);
	uint8_t kind;
	struct pv_desc desc = take_desc(input, &kind);

	if (kind & 8)
		desc.length %= 64;
	if (kind & 16)
		desc.address %= RAM;
	if (kind & 32)
		desc.next = (uint16_t)(desc.next % SIZE);
	if (kind & 64)
		desc.address = TABLE_AT + (desc.address & 0xff0);
	if (kind & 128)
		desc.length = desc.length % 64 * 8;
	memcpy(driver->ram + place, &desc, sizeof(desc));
}

/* Write a descriptor of the queue. */
static inline void describe(struct driver *driver, struct input *input, unsigned queue)
{
	write_desc(driver, input, queue * QUEUE_STEP, SIZE - 1);
}

/* Write one of an indirect table. */
static inline void describe_indirect(struct driver *driver, struct input *input)
{
	write_desc(driver, input, TABLE_AT, 255);
}

static inline void offer(struct driver *driver, unsigned queue, uint16_t head)
{
	uint8_t *ring = driver->ram + queue * QUEUE_STEP + 0x400;
	struct pv_avail *avail = (struct pv_avail *)(void *)ring;

	avail->ring[avail->idx % SIZE] = head;
	avail->idx++;
}

/* Offer a chain that means well, by an indirect table of its head's own. */
static inline void offer_chain(struct driver *driver, unsigned queue, uint16_t head,
                               struct pv_desc *descs, unsigned count)
{
	struct pv_desc table = {.address = (unsigned)TABLE_AT + head * (unsigned)TABLE_STEP,
	                        .length = (uint32_t)(count * sizeof(*descs)),
	                        .flags = PV_DESC_INDIRECT};

	for (unsigned i = 0; i + 1 < count; i++) {
		descs[i].flags |= PV_DESC_NEXT;
		descs[i].next = (uint16_t)(i + 1);
	}
	memcpy(driver->ram + table.address, descs, table.length);
	memcpy(driver->ram + queue * QUEUE_STEP + head * sizeof(table), &table, sizeof(table));
	offer(driver, queue, head);
}

/* What any driver does to its rings and its memory, by the number of the instruction, 0 to 3. */
static inline void drive(struct driver *driver, struct input *input, unsigned what, unsigned queue)
{
	if (what == 0)
		describe(driver, input, queue);
	else if (what == 1)
		describe_indirect(driver, input);
	else if (what == 2)
		offer(driver, queue, (uint16_t)take(input, 1));
	else
		driver->ram[take(input, 2) % RAM] = (uint8_t)take(input, 1);
}

#endif
