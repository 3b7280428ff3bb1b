/* Chains of descriptors (virtio 1.2, 2.7.4 and 2.7.5). */
#include <stddef.h>

#include "arena.h"
#include "machine.h"
#include "rule.h"

#define WITH_TAIL(flag) (play_tail(play)->flags = (uint16_t)(play_tail(play)->flags | (flag)))

static void next_out_of_range(struct play *play)
{
	struct queue *queue = play->queue;

	queue->desc[queue->size] = *play_tail(play);
	WITH_TAIL(NEXT);
	play_tail(play)->next = queue->size;
}

static void next_huge(struct play *play)
{
	WITH_TAIL(NEXT);
	play_tail(play)->next = 0xffff;
}

static void loop_to_itself(struct play *play)
{
	WITH_TAIL(NEXT);
	play_tail(play)->next = play->request.tail;
}

/* Empty segments, so that nothing but the number of links ever ends it. */
static void loop_of_two(struct play *play)
{
	uint16_t tail = play->request.tail, more = (uint16_t)(tail + 1);
	uint16_t way = play_tail(play)->flags & WRITE;

	WITH_TAIL(NEXT);
	play_tail(play)->next = more;
	play->queue->desc[more] = (struct desc){
		.address = play_tail(play)->address,
		.flags = (uint16_t)(way | NEXT),
		.next = (uint16_t)(more + 1),
	};
	play->queue->desc[more + 1] = play->queue->desc[more];
	play->queue->desc[more + 1].next = more;
}

static void flags_unknown(struct play *play)
{
	play_head(play)->flags |= 0xfff8;
}

static void append(struct play *play, uint16_t flags, uint64_t address, uint32_t length)
{
	uint16_t more = play->queue->free++;

	WITH_TAIL(NEXT);
	play_tail(play)->next = more;
	play->queue->desc[more] = (struct desc){address, length, flags, 0};
	play->request.room += flags & WRITE ? length : 0;
}

static void prepend(struct play *play, uint16_t flags, void *at, uint32_t length)
{
	uint16_t more = play->queue->free++;

	play->queue->desc[more] = (struct desc){
		(uintptr_t)at, length, (uint16_t)(flags | NEXT), play->request.head};
	play->request.head = more;
}

static void readable_after_writable(struct play *play)
{
	void *piece = arena_take(16, DEVICE_READS);

	if (play_tail(play)->flags & WRITE) {
		append(play, 0, (uintptr_t)piece, 16);
	} else {
		prepend(play, WRITE, arena_take(16, DEVICE_WRITES), 16);
		play->request.room = 16;
	}
}

/* Memory for the driver's eyes is for the device's hands, and the reverse. */
static void directions_turned(struct play *play)
{
	uint32_t room = 0;

	for (unsigned i = 0; i < play->request.count; i++) {
		struct desc *desc = &play->queue->desc[play->request.head + i];

		desc->flags ^= WRITE;
		desc->address = (uintptr_t)arena_take(desc->length,
		                                      desc->flags & WRITE ? DEVICE_WRITES : DEVICE_READS);
		if (desc->flags & WRITE)
			room += desc->length;
	}
	play->request.room = room;
}

static void empty_segment(struct play *play)
{
	append(play, play_tail(play)->flags & WRITE, play_tail(play)->address, 0);
}

static void all_empty(struct play *play)
{
	for (unsigned i = 0; i < play->request.count; i++)
		play->queue->desc[play->request.head + i].length = 0;
	play->request.room = 0;
}

/* Of the data, where that is apart from a header. */
static void bad_address(struct play *play, uint64_t address, uint32_t length)
{
	struct desc *desc = play_head(play) + (play->request.count > 1);

	if (desc->flags & WRITE)
		play->request.room += length - desc->length;
	desc->address = address;
	desc->length = length;
}

static void outside_memory(struct play *play)
{
	bad_address(play, BIT(40), 512);
}

static void high_bit(struct play *play)
{
	bad_address(play, BIT(63), 512);
}

static void address_wraps(struct play *play)
{
	bad_address(play, UINT64_MAX - 255, 512);
}

static void length_wraps(struct play *play)
{
	uint64_t free = machine.memory_end ? machine.memory_end - 4096 : 0x200000;

	bad_address(play, free, 0xffffffff);
}

static enum answer over_the_end(struct play *play)
{
	if (machine.memory_end == 0)
		return skipped(play, "nobody told where memory ends");
	play_lay_out(play);
	bad_address(play, machine.memory_end - 256, 512);
	return play_submit(play);
}

static void in_registers(struct play *play)
{
	bad_address(play, play->device->base, 512);
}

/* Each link of one byte, as a driver may: no framing is laid down. Long ones keep what is too much
 * for the ring. */
static enum answer split(struct play *play)
{
	struct queue *queue = play->queue;
	struct request *request = &play->request;
	uint16_t at = 0;
	unsigned links = RING_SIZE - 2;

	*request = (struct request){0};
	play->device->kind->fill(play->device, request);
	for (unsigned i = 0; i < request->count; i++) {
		const struct segment *segment = &request->segments[i];
		uint32_t done = 0;

		links -= request->count - i - 1;
		for (; done < segment->length && links; links--) {
			uint32_t length = links == 1 ? segment->length - done : 1;

			queue->desc[at] = (struct desc){
				(uintptr_t)segment->at + done, length,
				(uint16_t)(NEXT | (segment->direction == IN ? WRITE : 0)),
				(uint16_t)(at + 1)};
			at++;
			done += length;
		}
		links += request->count - i - 1;
		request->room += segment->direction == IN ? segment->length : 0;
	}
	queue->desc[at - 1].flags &= WRITE;
	return play_submit(play);
}

/* The device writes over what it has yet to write itself: the head of the used ring. */
static enum answer into_the_rings(struct play *play)
{
	struct queue *queue = play->queue;
	struct desc *desc;

	play_lay_out(play);
	desc = play_head(play) + (play->request.count > 1);
	desc->address = (uintptr_t)queue->used;
	desc->length = 4;
	make_available(queue, play->request.head);
	show(queue);
	kick(play->device, queue);
	queue->seen = 0xffff;
	return play_observe_queue(play, queue);
}

const struct rule chain_rules[] = {
	{"next-out-of-range", ANY_KIND, REFUSES, .damage = next_out_of_range},
	{"next-huge", ANY_KIND, REFUSES, .damage = next_huge},
	{"loop-to-itself", ANY_KIND, REFUSES, .damage = loop_to_itself},
	{"loop-of-empty-links", ANY_KIND, REFUSES, .damage = loop_of_two},
	{"flags-unknown", ANY_KIND, ANYTHING, .damage = flags_unknown},
	{"readable-after-writable", ANY_KIND, ANYTHING, .damage = readable_after_writable},
	{"directions-turned", ANY_KIND, REFUSES, .damage = directions_turned},
	{"empty-segment", ANY_KIND, ANYTHING, .damage = empty_segment},
	{"all-segments-empty", ANY_KIND, REFUSES, .damage = all_empty},
	{"segment-outside-memory", ANY_KIND, REFUSES, .damage = outside_memory},
	{"segment-high-bit", ANY_KIND, REFUSES, .damage = high_bit},
	{"segment-address-wraps", ANY_KIND, REFUSES, .damage = address_wraps},
	{"segment-length-wraps", ANY_KIND, REFUSES, .damage = length_wraps},
	{"segment-over-the-end", ANY_KIND, REFUSES, .play = over_the_end},
	{"segment-in-registers", ANY_KIND, ANYTHING, .damage = in_registers},
	{"segments-of-a-byte", ANY_KIND, WORKS, .play = split},
	{"segment-in-used-ring", KIND(BLOCK) | KIND(ENTROPY), ANYTHING, .play = into_the_rings},
	RULES_END,
};
