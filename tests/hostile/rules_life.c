/* Resets, and what is to be known of a device that broke (virtio 1.2, 2.1.2, 2.4, 3.1). */
#include <stddef.h>

#include "arena.h"
#include "io.h"
#include "machine.h"
#include "rule.h"

#define A_WHILE (UINT64_C(1) << 27) /* 30 to 130 ms */

static void pass(uint64_t time)
{
	uint64_t start = ticks();

	while (ticks() - start < time)
		;
}

/* As many requests as the queue holds, each with memory of its own. */
static void fill_queue(struct play *play)
{
	for (unsigned left = play->queue->size; left >= SEGMENTS_MAX; left -= play->request.count) {
		play_lay_out(play);
		make_available(play->queue, play->request.head);
	}
	show(play->queue);
}

/* After a reset nothing is written any more: not to the rings, not to the buffers. */
static enum answer reset_in_flight(struct play *play)
{
	struct queue *queue = play->queue;

	fill_queue(play);
	kick(play->device, queue);
	if (!device_reset(play->device))
		return wrong(play, "does not reset");
	if (queue->used->idx > queue->made)
		return wrong(play, "used more than was available");
	arena_freeze();
	pass(A_WHILE);
	return arena_damage() ? wrong(play, "wrote to memory after its reset") : SERVED;
}

static enum answer reset_rounds(struct play *play)
{
	for (unsigned round = 0; round < machine.rounds; round++) {
		if (!play_start(play, 0, 0))
			return WRONG;
		play_lay_out(play);
		make_available(play->queue, play->request.head);
		show(play->queue);
		kick(play->device, play->queue);
	}
	return play_start(play, 0, 0) ? play_valid(play) : WRONG;
}

static enum answer before_driver_ok(struct play *play)
{
	struct device *device = play->device;

	if (!device_reset(device) || !device_negotiate(device, device->accepted))
		return wrong(play, "does not start");
	arena_clear();
	device_queues(device, RING_SIZE);
	play_lay_out(play);
	make_available(play->queue, play->request.head);
	show(play->queue);
	kick(device, play->queue);
	pass(A_WHILE);
	if (play->queue->used->idx != 0)
		return wrong(play, "used a buffer before DRIVER_OK");
	set(device, STATUS, get(device, STATUS) | DRIVER_OK);
	kick(device, play->queue);
	return play_observe(play);
}

static enum answer no_queues(struct play *play)
{
	struct device *device = play->device;

	if (!device_reset(device) || !device_negotiate(device, device->accepted))
		return wrong(play, "does not start");
	set(device, STATUS, get(device, STATUS) | DRIVER_OK);
	for (uint16_t index = 0; index < kind_queues(device); index++)
		set(device, QUEUE_NOTIFY, index);
	return get(device, STATUS) & NEEDS_RESET ? BROKEN : SILENCE;
}

static void break_ring(struct play *play)
{
	make_available(play->queue, 0xfff0);
	show(play->queue);
	kick(play->device, play->queue);
}

/* Who is broken says so, by the one interrupt there is for it. */
static enum answer tells_of_reset(struct play *play)
{
	uint64_t start = ticks();
	enum answer answer;

	break_ring(play);
	answer = play_observe(play);
	if (answer != BROKEN)
		return answer;
	while (ticks() - start < QUIET_TICKS)
		if (get(play->device, INTERRUPT_STATUS) & INTERRUPT_CONFIG)
			return BROKEN;
	return wrong(play, "NEEDS_RESET without a configuration interrupt");
}

/* A broken device does no more: not what it is asked, not what it was asked before. */
static enum answer broken_stays(struct play *play)
{
	struct queue *queue = play->queue;
	uint16_t idx;

	break_ring(play);
	if (play_observe(play) != BROKEN)
		return SILENCE;
	idx = queue->used->idx;
	play_lay_out(play);
	queue->avail->ring[0] = play->request.head;
	arena_seal();
	for (unsigned i = 0; i < 10; i++)
		kick(play->device, queue);
	pass(A_WHILE);
	return queue->used->idx == idx ? BROKEN : wrong(play, "serves although it is broken");
}

static enum answer resets_twice(struct play *play)
{
	break_ring(play);
	play_observe(play);
	if (!device_reset(play->device) || !device_reset(play->device))
		return wrong(play, "does not reset");
	return SERVED;
}

/* While this one is broken, all others serve. */
static enum answer neighbours_serve(struct play *play)
{
	struct play other = {0};
	enum answer answer;

	break_ring(play);
	if (play_observe(play) != BROKEN)
		return skipped(play, "the device does not break");
	for (unsigned i = 0; i < machine.device_count; i++) {
		other.device = &machine.devices[i];
		if (other.device == play->device || other.device->is_lost)
			continue;
		if (!play_start(&other, 0, 0))
			return wrong(play, "another device does not start");
		answer = play_valid(&other);
		device_reset(other.device);
		if (!(WORKS & MAY(answer)))
			return wrong(play, "another device does not serve");
	}
	return SERVED;
}

const struct rule life_rules[] = {
	{"reset-in-flight", ANY_KIND, WORKS, .play = reset_in_flight},
	{"reset-rounds", ANY_KIND, WORKS, .play = reset_rounds},
	{"kick-before-driver-ok", ANY_KIND, WORKS, .play = before_driver_ok},
	{"no-queues", ANY_KIND, ANYTHING, .play = no_queues},
	{"needs-reset-is-told", ANY_KIND, MAY(SILENCE) | MAY(BROKEN), .play = tells_of_reset},
	{"needs-reset-stays", ANY_KIND, MAY(SILENCE) | MAY(BROKEN), .play = broken_stays},
	{"reset-twice", ANY_KIND, WORKS, .play = resets_twice},
	{"neighbours-serve", ANY_KIND, WORKS, .play = neighbours_serve},
	RULES_END,
};
