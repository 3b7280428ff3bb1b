#include "play.h"

#include <stddef.h>

#include "arena.h"
#include "io.h"

enum answer wrong(struct play *play, const char *why)
{
	play->why = why;
	return WRONG;
}

enum answer skipped(struct play *play, const char *why)
{
	play->why = why;
	return SKIPPED;
}

bool play_start(struct play *play, uint64_t with, uint64_t without)
{
	play->why = device_start(play->device, with, without);
	play->queue = &play->device->queues[play->device->kind->main];
	return play->why == NULL;
}

void lay_out(struct queue *queue, struct request *request)
{
	request->head = queue->free;
	request->room = 0;
	for (unsigned i = 0; i < request->count; i++) {
		const struct segment *segment = &request->segments[i];

		request->tail = queue->free++;
		queue->desc[request->tail] = (struct desc){
			.address = (uintptr_t)segment->at,
			.length = segment->length,
			.flags = (uint16_t)((segment->direction == IN ? WRITE : 0) |
		                            (i + 1 < request->count ? NEXT : 0)),
			.next = queue->free,
		};
		if (segment->direction == IN)
			request->room += segment->length;
	}
}

void play_lay_out(struct play *play)
{
	play->request = (struct request){0};
	play->device->kind->fill(play->device, &play->request);
	lay_out(play->queue, &play->request);
}

struct desc *play_head(const struct play *play)
{
	return &play->queue->desc[play->request.head];
}

struct desc *play_tail(const struct play *play)
{
	return &play->queue->desc[play->request.tail];
}

void make_available(struct queue *queue, uint16_t head)
{
	queue->avail->ring[queue->made++ % queue->size] = head;
}

void show(struct queue *queue)
{
	queue->avail->idx = queue->made;
	arena_seal();
}

void kick(const struct device *device, const struct queue *queue)
{
	set(device, QUEUE_NOTIFY, queue->index);
}

static enum answer judge(struct play *play)
{
	struct queue *queue = play->queue;
	uint32_t id = queue->used->ring[queue->seen % queue->size].id;
	uint32_t length = queue->used->ring[queue->seen % queue->size].length;

	if (queue->used->idx != (uint16_t)(queue->seen + 1))
		return wrong(play, "used more than was available");
	queue->seen++;
	if (id != play->request.head)
		return wrong(play, "used a head that was not available");
	if (length > play->request.room)
		return wrong(play, "used length is more than it may write");
	switch (play->device->kind->judge(&play->request, length)) {
	case OUTCOME_SERVED:
		return SERVED;
	case OUTCOME_ERROR:
		return ERROR;
	case OUTCOME_NOTHING:
		return DONE;
	default:
		return wrong(play, "wrong used length or status");
	}
}

/* Wait until the queue has more used entries than were seen (1), or the device breaks (-1). */
static int wait(const struct device *device, const struct queue *queue, uint64_t limit)
{
	uint64_t start = ticks();

	do {
		if (queue->size && queue->used->idx != queue->seen)
			return 1;
		if (get(device, STATUS) & NEEDS_RESET)
			return -1;
	} while (ticks() - start < limit);
	return 0;
}

enum answer play_observe(struct play *play)
{
	int came = wait(play->device, play->queue, QUIET_TICKS);

	if (came > 0)
		return judge(play);
	return came < 0 ? BROKEN : SILENCE;
}

enum answer play_observe_queue(struct play *play, struct queue *queue)
{
	int came = wait(play->device, queue, QUIET_TICKS);

	if (came > 0) {
		queue->seen = queue->used->idx;
		return DONE;
	}
	return came < 0 ? BROKEN : SILENCE;
}

enum answer play_submit(struct play *play)
{
	make_available(play->queue, play->request.head);
	show(play->queue);
	kick(play->device, play->queue);
	return play_observe(play);
}

enum answer play_valid(struct play *play)
{
	play_lay_out(play);
	return play_submit(play);
}
