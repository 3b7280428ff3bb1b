/* Tables of descriptors that are not in the ring (virtio 1.2, 2.7.5.3). */
#include <stddef.h>

#include "arena.h"
#include "rule.h"

#define ENTRIES RING_SIZE
#define LONG_ENTRIES 1500

static struct desc *table;

/* Move the request from the ring into a table, and let the head name that. */
static void into_table(struct play *play)
{
	table = arena_take((ENTRIES + 1) * sizeof(*table), DEVICE_READS); /* one that is not told of */
	for (uint16_t i = 0; i < play->request.count; i++) {
		table[i] = play->queue->desc[play->request.head + i];
		table[i].next = (uint16_t)(i + 1);
	}
	*play_head(play) = (struct desc){(uintptr_t)table, ENTRIES * sizeof(*table), INDIRECT, 0};
}

static struct desc *last(const struct play *play)
{
	return &table[play->request.count - 1];
}

static void and_next(struct play *play)
{
	into_table(play);
	play_head(play)->flags |= NEXT;
	play_head(play)->next = (uint16_t)(play->request.tail + 1);
	play->queue->desc[play->request.tail + 1] = table[0];
}

/* What a device that only reads is to take in spite of the flag, by the specification. */
static void and_write(struct play *play)
{
	into_table(play);
	play_head(play)->flags |= WRITE;
}

static void nested(struct play *play)
{
	struct desc *inner;

	into_table(play);
	inner = table;
	table = arena_take(ENTRIES * sizeof(*table), DEVICE_READS);
	table[0] = *play_head(play);
	table[0].address = (uintptr_t)inner;
	play_head(play)->address = (uintptr_t)table;
}

static void into_itself(struct play *play)
{
	into_table(play);
	table[0] = *play_head(play);
}

static void odd_length(struct play *play)
{
	into_table(play);
	play_head(play)->length += 8;
}

static void no_length(struct play *play)
{
	into_table(play);
	play_head(play)->length = 0;
}

static void table_outside(struct play *play)
{
	into_table(play);
	play_head(play)->address = BIT(40);
}

static void table_wraps(struct play *play)
{
	into_table(play);
	play_head(play)->address = UINT64_MAX - 15;
	play_head(play)->length = 0xfffffff0;
}

static void table_in_registers(struct play *play)
{
	into_table(play);
	play_head(play)->address = play->device->base;
}

static void next_past_table(struct play *play)
{
	into_table(play);
	table[ENTRIES] = *last(play);
	last(play)->flags |= NEXT;
	last(play)->next = ENTRIES;
}

static void loop_in_table(struct play *play)
{
	into_table(play);
	last(play)->flags |= NEXT;
	last(play)->next = (uint16_t)(play->request.count - 1);
}

/* No loop, but as long as a table can be. */
static void long_table(struct play *play)
{
	uint16_t way;

	into_table(play);
	way = last(play)->flags & WRITE;
	play_head(play)->address = (uintptr_t)arena_take(LONG_ENTRIES * sizeof(*table), DEVICE_READS);
	play_head(play)->length = LONG_ENTRIES * sizeof(*table);
	for (uint16_t i = 0; i < LONG_ENTRIES; i++) {
		struct desc *desc = (struct desc *)(uintptr_t)play_head(play)->address + i;

		*desc = i < play->request.count ? table[i] : *last(play);
		desc->flags = (uint16_t)((i < play->request.count ? desc->flags : way) | NEXT);
		desc->next = (uint16_t)(i + 1);
		if (i >= play->request.count)
			desc->length = 0;
	}
}

/* 2^32 bytes, in pieces that are all there: whoever counts in 32 bits counts none. */
static void sum_wraps(struct play *play)
{
	const unsigned pieces = 256;
	struct desc *desc;

	into_table(play);
	desc = arena_take((pieces + 4) * (uint32_t)sizeof(*desc), DEVICE_READS);
	play_head(play)->address = (uintptr_t)desc;
	play_head(play)->length = (pieces + 3) * (uint32_t)sizeof(*desc);
	*desc = table[0];
	desc->flags |= NEXT;
	for (uint16_t i = 1; i <= pieces; i++)
		desc[i] = (struct desc){0x100000, 16 << 20, NEXT, (uint16_t)(i + 1)};
	for (uint16_t i = 1; i < play->request.count; i++) {
		desc[pieces + i] = table[i];
		desc[pieces + i].flags |= NEXT;
		desc[pieces + i].next = (uint16_t)(pieces + i + 1);
	}
	desc[pieces + play->request.count - 1].flags &= WRITE;
}

const struct rule indirect_rules[] = {
	{"table", ANY_KIND, WORKS, .with = INDIRECT_DESC, .damage = into_table},
	{"table-not-negotiated", ANY_KIND, ANYTHING, .without = INDIRECT_DESC, .damage = into_table},
	{"table-and-next", ANY_KIND, ANYTHING, .with = INDIRECT_DESC, .damage = and_next},
	{"table-writable", ANY_KIND, WORKS, .with = INDIRECT_DESC, .damage = and_write},
	{"table-in-table", ANY_KIND, ANYTHING, .with = INDIRECT_DESC, .damage = nested},
	{"table-in-itself", ANY_KIND, REFUSES, .with = INDIRECT_DESC, .damage = into_itself},
	{"table-odd-length", ANY_KIND, REFUSES, .with = INDIRECT_DESC, .damage = odd_length},
	{"table-empty", ANY_KIND, REFUSES, .with = INDIRECT_DESC, .damage = no_length},
	{"table-outside-memory", ANY_KIND, REFUSES, .with = INDIRECT_DESC, .damage = table_outside},
	{"table-wraps", ANY_KIND, REFUSES, .with = INDIRECT_DESC, .damage = table_wraps},
	{"table-in-registers", ANY_KIND, REFUSES, .with = INDIRECT_DESC, .damage = table_in_registers},
	{"table-next-out-of-range", ANY_KIND, REFUSES, .with = INDIRECT_DESC, .damage = next_past_table},
	{"table-loop", ANY_KIND, REFUSES, .with = INDIRECT_DESC, .damage = loop_in_table},
	{"table-long", ANY_KIND, ANYTHING, .with = INDIRECT_DESC, .damage = long_table},
	{"sum-wraps", KIND(NET) | KIND(SOCKET), ANYTHING, .with = INDIRECT_DESC,
	 .damage = sum_wraps},
	RULES_END,
};
