/* What a driver may say in the available ring, and scribble in the other (virtio 1.2, 2.7). */
#include <stddef.h>

#include "arena.h"
#include "block.h"
#include "io.h"
#include "rule.h"
#include "socket.h"

#define SCRIBBLE 0x7777
#define LARGE 256

static enum answer avail_jumps(struct play *play, uint16_t by)
{
	play_lay_out(play);
	play->queue->made = (uint16_t)(play->queue->made + by);
	show(play->queue);
	kick(play->device, play->queue);
	return play_observe(play);
}

static enum answer jumps_past_size(struct play *play)
{
	return avail_jumps(play, (uint16_t)(play->queue->size + 1));
}

static enum answer jumps_half_way(struct play *play)
{
	return avail_jumps(play, 0x8000);
}

static enum answer goes_back(struct play *play)
{
	enum answer answer = play_valid(play);

	return WORKS & MAY(answer) ? avail_jumps(play, 0xffff) : answer;
}

static enum answer submit_head(struct play *play, uint16_t head)
{
	play_lay_out(play);
	play->queue->desc[play->queue->size] = *play_head(play);
	make_available(play->queue, head);
	show(play->queue);
	kick(play->device, play->queue);
	return play_observe(play);
}

static enum answer head_is_size(struct play *play)
{
	return submit_head(play, play->queue->size);
}

static enum answer head_is_last(struct play *play)
{
	return submit_head(play, 0xffff);
}

/* As soon as a head is used it may be made available again: what is wrong is to have it in flight
 * twice, which a device that serves one after the other never sees. */
static enum answer head_twice(struct play *play)
{
	struct queue *queue = play->queue;
	uint64_t start = ticks();

	play_lay_out(play);
	make_available(queue, play->request.head);
	make_available(queue, play->request.head);
	show(queue);
	kick(play->device, queue);
	while (ticks() - start < QUIET_TICKS && !(get(play->device, STATUS) & NEEDS_RESET))
		if (queue->used->idx == 2)
			return SERVED;
	if (queue->used->idx > 2)
		return wrong(play, "used more than was available");
	return get(play->device, STATUS) & NEEDS_RESET ? BROKEN : SILENCE;
}

static enum answer flags_unknown(struct play *play)
{
	play->queue->avail->flags = 0xffff;
	return play_valid(play);
}

static enum answer used_scribbled(struct play *play)
{
	struct used *used = play->queue->used;
	enum answer answer;

	play_lay_out(play);
	used->flags = 0xffff;
	for (unsigned i = 0; i < play->queue->size; i++)
		used->ring[i].id = used->ring[i].length = UINT32_MAX;
	used->idx = play->queue->seen = SCRIBBLE;
	make_available(play->queue, play->request.head);
	show(play->queue);
	kick(play->device, play->queue);
	answer = play_observe_queue(play, play->queue);
	if (answer != DONE)
		return answer;
	play->queue->seen = 0;
	return used->idx == 1 ? play_observe(play) : wrong(play, "used idx goes on from the driver's");
}

static enum answer event_index(struct play *play)
{
	static const uint16_t events[] = {0, 1, 2, 0x7fff, 0x8000, 0xffff, 0x1234, 16};
	uint16_t *used_event = &play->queue->avail->ring[play->queue->size];
	enum answer answer = SERVED;

	play_lay_out(play);
	for (unsigned i = 0; i < 2 * sizeof(events) / sizeof(*events); i++) {
		*used_event = events[i % (sizeof(events) / sizeof(*events))];
		answer = play_submit(play);
		if (!(WORKS & MAY(answer)))
			break;
	}
	return answer;
}

static enum answer kicks_for_nothing(struct play *play)
{
	for (unsigned i = 0; i < 200; i++)
		kick(play->device, play->queue);
	if (play->queue->used->idx != 0)
		return wrong(play, "used what was not available");
	return play_valid(play);
}

/* Have the device want to use its other queues: for what comes from the network, or an answer. */
static void provoke(struct play *play)
{
	play_lay_out(play);
	if (play->device->id == SOCKET)
		socket_ask(&play->request);
	make_available(play->queue, play->request.head);
	show(play->queue);
	kick(play->device, play->queue);
}

/* The same in every queue but the main one; whichever the device comes to first, it breaks. */
static enum answer other_queues(struct play *play, uint16_t head, const struct desc *desc)
{
	struct device *device = play->device;
	unsigned others = 0;

	for (uint16_t index = 0; index < kind_queues(device); index++) {
		struct queue *queue = &device->queues[index];

		if (index == device->kind->main || !queue->size)
			continue;
		queue->desc[0] = *desc;
		make_available(queue, head);
		show(queue);
		kick(device, queue);
		others++;
	}
	if (others == 0)
		return skipped(play, "the device has one queue");
	provoke(play);
	for (uint64_t start = ticks(); ticks() - start < QUIET_TICKS;)
		if (get(device, STATUS) & NEEDS_RESET)
			return BROKEN;
	return SILENCE;
}

static enum answer others_bad_head(struct play *play)
{
	static const struct desc none;

	return other_queues(play, 0xfff0, &none);
}

static enum answer others_loop(struct play *play)
{
	static const struct desc loop = {.address = 0x200000, .length = 4, .flags = NEXT, .next = 0};

	return other_queues(play, 0, &loop);
}

static enum answer others_nowhere(struct play *play)
{
	static const struct desc nowhere = {.address = BIT(52), .length = 4, .flags = WRITE};

	return other_queues(play, 0, &nowhere);
}

/* Lay the same request out again and again: all heads lead to the same memory. Return their number,
 * a power of two. */
static unsigned fill_queue(struct play *play)
{
	struct queue *queue = play->queue;
	unsigned each, heads = 1;

	play_lay_out(play);
	if (play->device->id == BLOCK) /* nothing that a disk has to be asked for */
		*(uint32_t *)play->request.segments[0].at = BLOCK_GET_ID;
	each = play->request.count;
	while (2 * heads * each <= queue->size)
		heads *= 2;
	for (unsigned i = each; i < heads * each; i++) {
		queue->desc[i] = queue->desc[i % each];
		queue->desc[i].next = (uint16_t)(i + 1);
	}
	for (unsigned i = 0; i < queue->size; i++)
		queue->avail->ring[i] = (uint16_t)(i % heads * each);
	return heads;
}

/* In batches of what the queue holds. */
static enum answer idx_wraps(struct play *play)
{
	struct device *device = play->device;
	struct queue *queue = play->queue;
	unsigned heads;

	if (!device_reset(device) || !device_negotiate(device, device->accepted))
		return wrong(play, "does not start");
	arena_clear();
	device_queues(device, LARGE);
	set(device, STATUS, get(device, STATUS) | DRIVER_OK);
	heads = fill_queue(play);
	for (unsigned left = 0x10000; left; left -= heads) {
		uint64_t start = ticks();

		queue->made = (uint16_t)(queue->made + heads);
		queue->avail->idx = queue->made;
		kick(device, queue);
		while (queue->used->idx != queue->made)
			if (ticks() - start > LIMIT_TICKS)
				return wrong(play, "stopped on the way round");
	}
	queue->seen = queue->made;
	queue->free = 0;
	return play_valid(play);
}

const struct rule ring_rules[] = {
	{"avail-jumps", ANY_KIND, MAY(SILENCE) | MAY(BROKEN), .play = jumps_past_size},
	{"avail-jumps-half-way", ANY_KIND, MAY(SILENCE) | MAY(BROKEN), .play = jumps_half_way},
	{"avail-goes-back", ANY_KIND, MAY(SILENCE) | MAY(BROKEN), .play = goes_back},
	{"head-out-of-range", ANY_KIND, MAY(SILENCE) | MAY(BROKEN), .play = head_is_size},
	{"head-huge", ANY_KIND, MAY(SILENCE) | MAY(BROKEN), .play = head_is_last},
	{"head-twice", ANY_KIND, ANYTHING, .play = head_twice},
	{"avail-flags", ANY_KIND, WORKS, .play = flags_unknown},
	{"used-ring-scribbled", ANY_KIND, ANYTHING, .play = used_scribbled},
	{"event-index", ANY_KIND, WORKS, .with = EVENT_IDX, .play = event_index},
	{"kicks-for-nothing", ANY_KIND, WORKS, .play = kicks_for_nothing},
	{"other-queues-head", ANY_KIND, REFUSES, .play = others_bad_head},
	{"other-queues-loop", ANY_KIND, REFUSES, .play = others_loop},
	{"other-queues-outside-memory", ANY_KIND, REFUSES, .play = others_nowhere},
	{"idx-wraps", ANY_KIND, WORKS, .play = idx_wraps},
	RULES_END,
};
