#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>

#include "virtio/virtqueue_internal.h"

#define KNOWN_FLAGS (PV_DESC_NEXT | PV_DESC_WRITE | PV_DESC_INDIRECT)
#define BYTES_MAX (UINT64_C(1) << 32)

/* Where a walk stands: in the queue's own table, or in the indirect one that ends its chain. */
struct walk {
	struct pv_virtqueue *queue;
	struct pv_chain *chain;
	const struct pv_desc *table;
	uint32_t count;    /* descriptors in the table */
	uint32_t index;    /* the one looked at */
	uint32_t length;   /* descriptors of the chain so far, in both tables */
	uint32_t segments; /* and segments, of both kinds, */
	uint64_t bytes;    /* with what is in them */
	bool nested;       /* in an indirect table */
	bool write_seen;   /* a writable descriptor came by: what is readable is in `chain` */
};

#define FAIL(walk, format, ...)                                                                    \
	pv_virtqueue_fail((walk)->queue, "%sdescriptor %" PRIu32 ": " format,                      \
	                  (walk)->nested ? "indirect " : "", (walk)->index, __VA_ARGS__)

/* Read a descriptor once: what is checked is what is used, whatever the driver does meanwhile.
 * An indirect table may lie anywhere, at odd addresses too. */
static struct pv_desc load(const struct pv_desc *table, uint32_t index)
{
	struct __attribute__((packed, may_alias)) words {
		uint64_t low, high;
	};
	const volatile struct words *at = (const volatile struct words *)(table + index);
	uint64_t low = at->low, high = at->high;

	return (struct pv_desc){
		.address = low,
		.length = (uint32_t)high,
		.flags = (uint16_t)(high >> 32),
		.next = (uint16_t)(high >> 48),
	};
}

static void end_readable(struct walk *walk)
{
	walk->chain->readable = (uint16_t)walk->segments;
	walk->chain->readable_bytes = walk->bytes;
}

static int add_segment(struct walk *walk, const struct pv_desc *desc)
{
	void *host;

	if (!(desc->flags & PV_DESC_WRITE)) {
		if (walk->write_seen)
			return FAIL(walk, "%s", "readable after a writable one");
	} else if (!walk->write_seen) {
		walk->write_seen = true;
		end_readable(walk);
	}
	if (desc->length == 0)
		return 0;
	host = pv_memory_at(walk->queue->memory, desc->address, desc->length);
	if (!host)
		return FAIL(walk, "0x%" PRIx64 "+0x%" PRIx32 " is not in guest memory", desc->address,
		            desc->length);
	walk->bytes += desc->length;
	if (walk->bytes > BYTES_MAX)
		return FAIL(walk, "%s", "more than 2^32 bytes in a chain");
	walk->chain->iov[walk->segments++] = (struct iovec){host, desc->length};
	return 0;
}

static int enter_table(struct walk *walk, const struct pv_desc *desc)
{
	const struct pv_desc *table;

	if (!walk->queue->indirect)
		return FAIL(walk, "%s", "an indirect table, which was not negotiated");
	if (walk->nested)
		return FAIL(walk, "%s", "an indirect table in an indirect table");
	if (desc->flags & PV_DESC_NEXT)
		return FAIL(walk, "%s", "both an indirect table and a next one");
	if (desc->length == 0 || desc->length % sizeof(*table) != 0)
		return FAIL(walk, "an indirect table of %" PRIu32 " bytes", desc->length);
	table = pv_memory_at(walk->queue->memory, desc->address, desc->length);
	if (!table)
		return FAIL(walk, "0x%" PRIx64 "+0x%" PRIx32 " is not in guest memory", desc->address,
		            desc->length);
	walk->table = table;
	walk->count = desc->length / (uint32_t)sizeof(*table);
	walk->index = 0;
	walk->nested = true;
	return 0;
}

/* 1: the walk goes on at walk->index, 0: the chain ends here. Without loops, a chain visits each
 * descriptor of a table once at most; and it is bounded, loop or no loop. */
static int step(struct walk *walk, const struct pv_desc *desc, uint32_t *visited)
{
	if (!(desc->flags & PV_DESC_NEXT))
		return 0;
	if (desc->next >= walk->count)
		return FAIL(walk, "next is %u, in a table of %" PRIu32, desc->next, walk->count);
	if (++*visited >= walk->count)
		return FAIL(walk, "%s", "the chain loops");
	walk->index = desc->next;
	return 1;
}

int pv_virtqueue_walk(struct pv_virtqueue *queue, uint16_t head, struct pv_chain *chain)
{
	struct walk walk = {
		.queue = queue,
		.chain = chain,
		.table = queue->desc,
		.count = queue->size,
		.index = head,
	};
	uint32_t visited = 0;
	int result;

	do {
		struct pv_desc desc = load(walk.table, walk.index);

		if (desc.flags & ~KNOWN_FLAGS)
			return FAIL(&walk, "unknown flags %#x", desc.flags);
		if (desc.flags & PV_DESC_INDIRECT) {
			visited = 0;
			result = enter_table(&walk, &desc);
			if (result == 0)
				result = 1;
			continue;
		}
		if (walk.length++ == PV_CHAIN_MAX)
			return FAIL(&walk, "more than %d descriptors in a chain", PV_CHAIN_MAX);
		result = add_segment(&walk, &desc);
		if (result == 0)
			result = step(&walk, &desc, &visited);
	} while (result > 0);
	if (!walk.write_seen)
		end_readable(&walk);
	chain->writable = (uint16_t)(walk.segments - chain->readable);
	chain->writable_bytes = walk.bytes - chain->readable_bytes;
	return result;
}
