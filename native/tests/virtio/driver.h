/* The driver's side of a split virtqueue for C tests and benchmarks: honest, one thread, its
 * guest-physical addresses counted from the start of `ram`. */
#ifndef PV_TESTS_DRIVER_H
#define PV_TESTS_DRIVER_H

#include <string.h>

#include "tests/check.h"
#include "virtio/virtqueue_internal.h"

enum { DRIVER_TABLE = 16 }; /* descriptors in the indirect table of each head */

struct driver {
	uint8_t *ram;
	size_t ram_size;
	struct pv_memory *memory;
	struct pv_virtqueue_config config;
	struct pv_desc *desc, *tables;
	struct pv_avail *avail;
	const struct pv_used *used;
	uint16_t *used_event;
	const uint16_t *avail_event;
	uint16_t free_head, free_count; /* the free descriptors, linked by `next` */
	uint16_t position;              /* where the next entry goes */
	uint16_t published;
	uint16_t collected; /* used entries seen */
};

/* Lay out the queue, one indirect table for each head, and `extra` bytes at `driver->ram` plus the
 * offset returned. */
static inline size_t driver_init(struct driver *driver, uint16_t size, int event_idx, int indirect,
                                 size_t extra)
{
	size_t desc = 0, avail = desc + 16 * (size_t)size;
	size_t used = (avail + 6 + 2 * (size_t)size + 3) & ~(size_t)3;
	size_t tables = (used + 6 + 8 * (size_t)size + 15) & ~(size_t)15;
	size_t rest = tables + 16 * DRIVER_TABLE * (size_t)size;

	memset(driver, 0, sizeof(*driver));
	driver->ram_size = rest + extra;
	driver->ram = aligned_alloc(4096, (driver->ram_size + 4095) & ~(size_t)4095);
	CHECK(driver->ram);
	memset(driver->ram, 0, driver->ram_size);
	CHECK_EQ(pv_memory_new(&driver->memory), 0);
	CHECK_EQ(pv_memory_add(driver->memory, 0, driver->ram_size, driver->ram), 0);
	driver->config = (struct pv_virtqueue_config){
		.desc = desc,
		.avail = avail,
		.used = used,
		.size = size,
		.event_idx = (uint8_t)event_idx,
		.indirect = (uint8_t)indirect,
	};
	driver->desc = (struct pv_desc *)(void *)(driver->ram + desc);
	driver->tables = (struct pv_desc *)(void *)(driver->ram + tables);
	driver->avail = (struct pv_avail *)(void *)(driver->ram + avail);
	driver->used = (const struct pv_used *)(void *)(driver->ram + used);
	driver->used_event = &driver->avail->ring[size];
	driver->avail_event = (const uint16_t *)(const void *)&driver->used->ring[size];
	for (uint16_t i = 0; i < size; i++)
		driver->desc[i].next = (uint16_t)(i + 1);
	driver->free_count = size;
	return rest;
}

static inline void driver_destroy(struct driver *driver)
{
	pv_memory_free(driver->memory);
	free(driver->ram);
}

/* The descriptor of a new chain that goes on with `more` others; its number in `*index`. */
static inline struct pv_desc *driver_take(struct driver *driver, uint16_t more, uint16_t *index)
{
	struct pv_desc *desc = &driver->desc[driver->free_head];

	CHECK(driver->free_count > 0);
	*index = driver->free_head;
	driver->free_head = desc->next;
	driver->free_count--;
	desc->flags = more ? PV_DESC_NEXT : 0;
	return desc;
}

/* Offer what is in `segments`, whose `flags` are 0 or PV_DESC_WRITE, in the queue's own table. */
static inline uint16_t driver_add(struct driver *driver, const struct pv_desc *segments,
                                  uint16_t count)
{
	uint16_t head = 0, index;

	for (uint16_t i = 0; i < count; i++) {
		struct pv_desc *desc = driver_take(driver, (uint16_t)(count - 1 - i), &index);

		if (i == 0)
			head = index;
		desc->address = segments[i].address;
		desc->length = segments[i].length;
		desc->flags |= segments[i].flags;
	}
	driver->avail->ring[driver->position++ & (driver->config.size - 1)] = head;
	return head;
}

/* The same in an indirect table. */
static inline uint16_t driver_add_indirect(struct driver *driver, const struct pv_desc *segments,
                                           uint16_t count)
{
	uint16_t head;
	struct pv_desc *desc = driver_take(driver, 0, &head);
	struct pv_desc *table = &driver->tables[(size_t)head * DRIVER_TABLE];

	CHECK(count <= DRIVER_TABLE);
	for (uint16_t i = 0; i < count; i++) {
		table[i] = segments[i];
		table[i].next = (uint16_t)(i + 1);
		if (i + 1 < count)
			table[i].flags |= PV_DESC_NEXT;
	}
	desc->address = (uint64_t)((uint8_t *)table - driver->ram);
	desc->length = count * (uint32_t)sizeof(*table);
	desc->flags = PV_DESC_INDIRECT;
	driver->avail->ring[driver->position++ & (driver->config.size - 1)] = head;
	return head;
}

/* Show the device what was added; whether it wants to be notified. */
static inline int driver_publish(struct driver *driver)
{
	uint16_t before = driver->published, now = driver->position;

	driver->published = now;
	__atomic_store_n(&driver->avail->idx, now, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!driver->config.event_idx)
		return before != now &&
		       !(__atomic_load_n(&driver->used->flags, __ATOMIC_RELAXED) & PV_USED_NO_NOTIFY);
	return (uint16_t)(__atomic_load_n(driver->avail_event, __ATOMIC_RELAXED) - before) <
	       (uint16_t)(now - before);
}

/* Take back a chain that was used; 0: there is none. */
static inline int driver_collect(struct driver *driver, uint16_t *head, uint32_t *length)
{
	const struct pv_used_elem *elem;
	uint16_t last, freed = 1;

	if (driver->collected == __atomic_load_n(&driver->used->idx, __ATOMIC_ACQUIRE))
		return 0;
	elem = &driver->used->ring[driver->collected++ & (driver->config.size - 1)];
	*head = last = (uint16_t)elem->id;
	*length = elem->len;
	for (; driver->desc[last].flags & PV_DESC_NEXT; last = driver->desc[last].next)
		freed++;
	driver->desc[last].next = driver->free_head;
	driver->free_head = *head;
	driver->free_count = (uint16_t)(driver->free_count + freed);
	return 1;
}

/* Ask for an interrupt when another chain is used. 1: do not wait, one was meanwhile. */
static inline int driver_enable_interrupts(struct driver *driver)
{
	if (driver->config.event_idx)
		__atomic_store_n(driver->used_event, driver->collected, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&driver->avail->flags, (uint16_t)0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&driver->used->idx, __ATOMIC_RELAXED) != driver->collected;
}

static inline void driver_disable_interrupts(struct driver *driver)
{
	if (!driver->config.event_idx)
		__atomic_store_n(&driver->avail->flags, (uint16_t)PV_AVAIL_NO_INTERRUPT,
		                 __ATOMIC_RELAXED);
}

#endif
