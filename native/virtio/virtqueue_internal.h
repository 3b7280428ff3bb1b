/* What the parts of a virtqueue share: why it is broken (error.c), the walk along a chain of
 * descriptors (chain.c), and its rings (virtqueue.c). */
#ifndef PV_VIRTQUEUE_INTERNAL_H
#define PV_VIRTQUEUE_INTERNAL_H

#include <stdatomic.h>

#include "virtio/virtqueue.h"

/* Layouts and flags of virtio 1.2, sections 2.7.5 to 2.7.8; all little-endian. */
enum { PV_DESC_NEXT = 1, PV_DESC_WRITE = 2, PV_DESC_INDIRECT = 4 };
enum { PV_AVAIL_NO_INTERRUPT = 1, PV_USED_NO_NOTIFY = 1 };

struct pv_desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

struct pv_avail {
	uint16_t flags;
	uint16_t idx;
	uint16_t ring[]; /* then uint16_t used_event */
};

struct pv_used_elem {
	uint32_t id;
	uint32_t len;
};

struct pv_used {
	uint16_t flags;
	uint16_t idx;
	struct pv_used_elem ring[]; /* then uint16_t avail_event */
};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian");
_Static_assert(sizeof(struct pv_desc) == 16 && sizeof(struct pv_used_elem) == 8, "layout");

struct pv_virtqueue {
	const struct pv_memory *memory;
	struct pv_virtqueue_config place;
	const struct pv_desc *desc;
	const struct pv_avail *avail;
	const uint16_t *used_event; /* where the driver asks for an interrupt */
	struct pv_used *used;
	uint16_t *avail_event; /* where the device asks for a kick */
	uint16_t size;
	uint8_t event_idx;
	uint8_t indirect;
	uint16_t next_avail;     /* the next entry to take; like avail->idx, modulo 2^16 */
	uint16_t known_avail;    /* avail->idx when last read: entries before it may be taken */
	uint16_t next_used;      /* where the next completion goes */
	uint16_t notified_used;  /* used->idx when pv_virtqueue_needs_notify last decided */
	uint16_t published_used; /* used->idx, which is only ours to write, and so never read back */
	uint16_t in_flight_count;
	uint64_t in_flight[PV_VIRTQUEUE_SIZE_MAX / 64]; /* a bit for each head */
	const char *_Atomic error;                       /* NULL, or `reason` */
	char reason[120];
};

/* Read the chain that starts at `head`, which is below the queue's size, into `chain`. 0, or
 * -EPROTO with the queue broken. */
int pv_virtqueue_walk(struct pv_virtqueue *queue, uint16_t head, struct pv_chain *chain);

/* Break the queue for the reason given, and return -EPROTO. */
int pv_virtqueue_fail(struct pv_virtqueue *queue, const char *format, ...)
	__attribute__((cold, format(printf, 2, 3)));

#endif
