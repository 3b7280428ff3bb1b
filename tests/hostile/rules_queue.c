/* Where queues are and how large, before DRIVER_OK and after (virtio 1.2, 2.7, 4.2.2). */
#include <stddef.h>

#include "arena.h"
#include "machine.h"
#include "rule.h"

#define NOWHERE (UINT64_C(1) << 40)

/* A queue as it is to be in the registers; those of a driver, damaged. */
struct place {
	uint32_t size;
	uint64_t desc, avail, used;
};

/* Start with the main queue in another place; what a request comes to there. */
static enum answer start_with(struct play *play,
                              void (*damage)(const struct device *, struct place *))
{
	struct device *device = play->device;
	struct queue *queue = play->queue;
	struct place place = {queue->size, (uintptr_t)queue->desc, (uintptr_t)queue->avail,
	                      (uintptr_t)queue->used};

	if (!device_reset(device) || !device_negotiate(device, device->accepted))
		return wrong(play, "does not start");
	damage(device, &place);
	set(device, QUEUE_SEL, queue->index);
	set(device, QUEUE_NUM, place.size);
	device_place(device, QUEUE_DESC, place.desc);
	device_place(device, QUEUE_DRIVER, place.avail);
	device_place(device, QUEUE_DEVICE, place.used);
	set(device, QUEUE_READY, 1);
	set(device, STATUS, get(device, STATUS) | DRIVER_OK);
	return play_valid(play);
}

static void zero(const struct device *device, struct place *place)
{
	(void)device;
	place->size = 0;
}

static void three(const struct device *device, struct place *place)
{
	(void)device;
	place->size = 3;
}

static void too_large(const struct device *device, struct place *place)
{
	place->size = 2 * device_queue_max(device, device->kind->main);
}

static void huge(const struct device *device, struct place *place)
{
	(void)device;
	place->size = 0x80000000;
}

static void truncated(const struct device *device, struct place *place)
{
	(void)device;
	place->size += 0x10000;
}

static void odd_desc(const struct device *device, struct place *place)
{
	(void)device;
	place->desc += 8;
}

static void odd_avail(const struct device *device, struct place *place)
{
	(void)device;
	place->avail += 1;
}

static void odd_used(const struct device *device, struct place *place)
{
	(void)device;
	place->used += 2;
}

static void desc_nowhere(const struct device *device, struct place *place)
{
	(void)device;
	place->desc = NOWHERE;
}

static void avail_nowhere(const struct device *device, struct place *place)
{
	(void)device;
	place->avail = NOWHERE;
}

static void used_nowhere(const struct device *device, struct place *place)
{
	(void)device;
	place->used = NOWHERE;
}

static void wraps(const struct device *device, struct place *place)
{
	(void)device;
	place->desc = UINT64_MAX - 15;
	place->avail = UINT64_MAX - 1;
	place->used = UINT64_MAX - 3;
}

static void in_registers(const struct device *device, struct place *place)
{
	place->desc = place->avail = place->used = device->base;
}

static void at_the_end(const struct device *device, struct place *place)
{
	(void)device;
	place->desc = machine.memory_end - 16;
}

#define PLAY(name)                                                                                 \
	static enum answer play_##name(struct play *play)                                          \
	{                                                                                          \
		return start_with(play, name);                                                     \
	}
PLAY(zero)
PLAY(three)
PLAY(too_large)
PLAY(huge)
PLAY(truncated)
PLAY(odd_desc)
PLAY(odd_avail)
PLAY(odd_used)
PLAY(desc_nowhere)
PLAY(avail_nowhere)
PLAY(used_nowhere)
PLAY(wraps)
PLAY(in_registers)

static enum answer play_at_the_end(struct play *play)
{
	if (machine.memory_end == 0)
		return skipped(play, "nobody told where memory ends");
	return start_with(play, at_the_end);
}

/* Serve so many requests that the used ring comes round, whatever size the device takes it for. */
static enum answer serve_round(struct play *play)
{
	enum answer answer = SILENCE;

	play_lay_out(play);
	for (unsigned i = 0; i < 2u * play->queue->size; i++) {
		answer = play_submit(play);
		if (!(WORKS & MAY(answer)))
			return answer;
	}
	return answer;
}

static enum answer resize(struct play *play, uint32_t size)
{
	set(play->device, QUEUE_SEL, play->queue->index);
	set(play->device, QUEUE_NUM, size);
	return serve_round(play);
}

static enum answer grows(struct play *play)
{
	return resize(play, device_queue_max(play->device, play->queue->index));
}

static enum answer grows_beyond(struct play *play)
{
	return resize(play, 0xffff);
}

static enum answer shrinks_to_0(struct play *play)
{
	return resize(play, 0);
}

static enum answer moves(struct play *play)
{
	set(play->device, QUEUE_SEL, play->queue->index);
	device_place(play->device, QUEUE_DESC, NOWHERE);
	device_place(play->device, QUEUE_DRIVER, NOWHERE);
	device_place(play->device, QUEUE_DEVICE, NOWHERE);
	set(play->device, QUEUE_READY, 1);
	return serve_round(play);
}

static enum answer unready(struct play *play)
{
	set(play->device, QUEUE_SEL, play->queue->index);
	set(play->device, QUEUE_READY, 0);
	return play_valid(play);
}

static enum answer ready_again(struct play *play)
{
	set(play->device, QUEUE_SEL, play->queue->index);
	set(play->device, QUEUE_READY, 0);
	set(play->device, QUEUE_NUM, 0x8000);
	device_place(play->device, QUEUE_DESC, NOWHERE);
	set(play->device, QUEUE_READY, 1);
	return play_valid(play);
}

static enum answer queue_reset(struct play *play)
{
	if (play->device->offered & RING_RESET)
		return skipped(play, "the device resets single queues");
	set(play->device, QUEUE_SEL, play->queue->index);
	set(play->device, QUEUE_RESET, 1);
	return play_valid(play);
}

/* The used ring over the table that it is about, but for the descriptors that are in use. */
static enum answer rings_overlap(struct play *play)
{
	struct device *device = play->device;
	struct queue *queue = play->queue;

	if (!device_reset(device) || !device_negotiate(device, device->accepted))
		return wrong(play, "does not start");
	arena_clear();
	device_queue(device, queue->index, RING_SIZE);
	queue->desc = arena_take(RING_SIZE * sizeof(struct desc), DEVICE_WRITES);
	device_place(device, QUEUE_DESC, (uintptr_t)queue->desc);
	device_place(device, QUEUE_DEVICE, (uintptr_t)queue->desc);
	set(device, QUEUE_READY, 1);
	set(device, STATUS, get(device, STATUS) | DRIVER_OK);
	queue->used = (struct used *)(void *)queue->desc;
	queue->free = RING_SIZE - SEGMENTS_MAX + 1;
	return play_valid(play);
}

const struct rule queue_rules[] = {
	{"queue-size-0", ANY_KIND, ANYTHING, .play = play_zero},
	{"queue-size-3", ANY_KIND, ANYTHING, .play = play_three},
	{"queue-size-above-max", ANY_KIND, ANYTHING, .play = play_too_large},
	{"queue-size-huge", ANY_KIND, ANYTHING, .play = play_huge},
	{"queue-size-beyond-16-bits", ANY_KIND, ANYTHING, .play = play_truncated},
	{"desc-misaligned", ANY_KIND, ANYTHING, .play = play_odd_desc},
	{"avail-misaligned", ANY_KIND, ANYTHING, .play = play_odd_avail},
	{"used-misaligned", ANY_KIND, ANYTHING, .play = play_odd_used},
	{"desc-outside-memory", ANY_KIND, REFUSES, .play = play_desc_nowhere},
	{"avail-outside-memory", ANY_KIND, REFUSES, .play = play_avail_nowhere},
	{"used-outside-memory", ANY_KIND, REFUSES, .play = play_used_nowhere},
	{"rings-wrap", ANY_KIND, REFUSES, .play = play_wraps},
	{"rings-in-registers", ANY_KIND, REFUSES, .play = play_in_registers},
	{"ring-over-the-end", ANY_KIND, ANYTHING, .play = play_at_the_end},
	{"live-queue-grows", ANY_KIND, ANYTHING, .play = grows},
	{"live-queue-grows-beyond-max", ANY_KIND, ANYTHING, .play = grows_beyond},
	{"live-queue-size-0", ANY_KIND, ANYTHING, .play = shrinks_to_0},
	{"live-queue-moves", ANY_KIND, ANYTHING, .play = moves},
	{"live-queue-unready", ANY_KIND, ANYTHING, .play = unready},
	{"live-queue-ready-again", ANY_KIND, ANYTHING, .play = ready_again},
	{"queue-reset-not-offered", ANY_KIND, WORKS, .play = queue_reset},
	{"rings-overlap", ANY_KIND, ANYTHING, .play = rings_overlap},
	RULES_END,
};
