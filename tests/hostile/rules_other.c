/* Requests of entropy devices, balloons, consoles and socket devices (virtio 1.2, 5.3 to 5.10). */
#include <stddef.h>

#include "arena.h"
#include "io.h"
#include "memory.h"
#include "rule.h"
#include "socket.h"

#define LARGE_BYTES (160u << 10)
#define ACTUAL (CONFIG + 4)

static enum answer entropy(struct play *play, uint32_t length)
{
	play->request = (struct request){0};
	request_add(&play->request, length, IN);
	lay_out(play->queue, &play->request);
	return play_submit(play);
}

static enum answer entropy_a_byte(struct play *play)
{
	return entropy(play, 1);
}

static enum answer entropy_much(struct play *play)
{
	return entropy(play, LARGE_BYTES);
}

static enum answer entropy_random(struct play *play)
{
	enum answer answer = entropy(play, 64);
	const uint8_t *bytes = play->request.segments[0].at;
	unsigned other = 0;

	for (unsigned i = 1; i < 64; i++)
		other += bytes[i] != bytes[0];
	if (answer == SERVED && play->queue->used->ring[0].length == 64 && !other)
		return wrong(play, "all bytes are the same");
	return answer;
}

/* A message for a queue, in one piece that is read. */
static void put(struct play *play, uint16_t index, const void *bytes, uint32_t length)
{
	struct queue *queue = &play->device->queues[index];
	struct request request = {0};

	memcpy(request_add(&request, length, OUT), bytes, length);
	lay_out(queue, &request);
	make_available(queue, request.head);
	show(queue);
	kick(play->device, queue);
}

/* The same, and what comes of it; what is used of it is not looked at. */
static enum answer say(struct play *play, uint16_t index, const void *bytes, uint32_t length)
{
	struct queue *queue = &play->device->queues[index];

	if (!queue->size)
		return skipped(play, "the device has no such queue");
	put(play, index, bytes, length);
	return play_observe_queue(play, queue);
}

static enum answer balloon(struct play *play, const void *bytes, uint32_t length)
{
	enum answer answer = say(play, 0, bytes, length);

	if (answer == BROKEN || !(ANYTHING & MAY(answer)))
		return answer;
	return say(play, 1, bytes, length);
}

static enum answer balloon_odd(struct play *play)
{
	static const uint8_t bytes[] = {0xff, 0xff, 0xff};

	return balloon(play, bytes, sizeof(bytes));
}

static enum answer balloon_outside(struct play *play)
{
	static const uint32_t frames[] = {0xffffffff, 0xfffffffe, 0x80000000,
	                                  0x00fffff0, 0x000fee00, 0x000d0000};

	return balloon(play, frames, sizeof(frames));
}

static enum answer balloon_twice(struct play *play)
{
	const struct desc *desc;

	play_lay_out(play);
	desc = play_head(play);
	say(play, 0, (const void *)(uintptr_t)desc->address, 4);
	say(play, 0, (const void *)(uintptr_t)desc->address, 4);
	say(play, 1, (const void *)(uintptr_t)desc->address, 4);
	return say(play, 1, (const void *)(uintptr_t)desc->address, 4);
}

static enum answer balloon_actual(struct play *play)
{
	static const uint32_t values[] = {0xffffffff, 0x80000000, 0, 1};

	for (unsigned i = 0; i < sizeof(values) / sizeof(*values); i++)
		write32(play->device->base + ACTUAL, values[i]);
	return play_valid(play);
}

static enum answer balloon_statistics(struct play *play)
{
	static uint8_t bytes[4001];

	if (!play->device->queues[2].size)
		return skipped(play, "the device asks for no statistics");
	memset(bytes, 0xff, sizeof(bytes));
	put(play, 2, bytes, sizeof(bytes));
	put(play, 2, bytes, 7); /* unasked: the first may be kept until somebody asks */
	return play_valid(play);
}

#define MULTIPORT BIT(1)
#define CONSOLE_CONTROL 3
struct control {
	uint32_t port;
	uint16_t event, value;
};

static enum answer console_short(struct play *play)
{
	static const uint8_t bytes[] = {0};

	return say(play, CONSOLE_CONTROL, bytes, sizeof(bytes));
}

static enum answer console_events(struct play *play)
{
	static const struct control messages[] = {
		{0xffffffff, 0, 1}, {0, 0xffff, 0xffff}, {0x80000000, 3, 1}, {31, 6, 1}, {0, 6, 0xffff},
		{0xffffffff, 6, 1}, {0, 3, 0},           {0, 7, 0},
	};

	for (unsigned i = 0; i < sizeof(messages) / sizeof(*messages); i++) {
		enum answer answer = say(play, CONSOLE_CONTROL, &messages[i], sizeof(*messages));

		if (answer != DONE)
			return answer;
	}
	return DONE;
}

/* Nobody takes the answers: they are not to be kept without an end. */
static enum answer console_flood(struct play *play)
{
	static const struct control ready = {0xffffffff, 0, 1};
	struct queue *queue = &play->device->queues[CONSOLE_CONTROL];
	enum answer answer = say(play, CONSOLE_CONTROL, &ready, sizeof(ready));

	for (unsigned i = 0; i < 300 && answer == DONE; i++) {
		make_available(queue, 0);
		show(queue);
		kick(play->device, queue);
		answer = play_observe_queue(play, queue);
	}
	return answer;
}

static struct socket_header *packet(const struct play *play)
{
	return play->request.segments[0].at;
}

static void socket_short(struct play *play)
{
	play_head(play)->length = sizeof(struct socket_header) - 1;
}

static void socket_length(struct play *play)
{
	packet(play)->operation = SOCKET_RW;
	packet(play)->length = 0xffffffff;
}

static void socket_more_than_said(struct play *play)
{
	packet(play)->operation = SOCKET_RW;
	packet(play)->length = 100;
}

static void socket_operation(struct play *play)
{
	packet(play)->operation = 0xffff;
}

static void socket_type(struct play *play)
{
	packet(play)->type = 0xffff;
	packet(play)->operation = SOCKET_REQUEST;
}

static void socket_forged(struct play *play)
{
	packet(play)->from = SOCKET_HOST;
	packet(play)->operation = SOCKET_REQUEST;
}

static void socket_elsewhere(struct play *play)
{
	packet(play)->to = UINT64_MAX;
	packet(play)->operation = SOCKET_REQUEST;
}

static void socket_no_connection(struct play *play)
{
	packet(play)->operation = SOCKET_CREDIT_REQUEST;
	packet(play)->room = 0;
	packet(play)->taken = 0x80000000;
}

/* Each of them calls for an answer, for which there is no room. */
static enum answer socket_flood(struct play *play)
{
	struct queue *queue = play->queue;

	for (unsigned i = 0; i < 300; i++) {
		if (i == 0) {
			play_lay_out(play);
			packet(play)->operation = SOCKET_REQUEST;
		}
		packet(play)->from_port = 1000 + i;
		make_available(queue, play->request.head);
		show(queue);
		kick(play->device, queue);
		if (play_observe_queue(play, queue) != DONE)
			return get(play->device, STATUS) & NEEDS_RESET ? BROKEN : SILENCE;
	}
	return DONE;
}

const struct rule other_rules[] = {
	{"entropy-a-byte", KIND(ENTROPY), MAY(SERVED), .play = entropy_a_byte},
	{"entropy-much", KIND(ENTROPY), ANYTHING, .play = entropy_much},
	{"entropy-random", KIND(ENTROPY), MAY(SERVED), .play = entropy_random},
	{"balloon-odd-length", KIND(BALLOON), ANYTHING, .play = balloon_odd},
	{"balloon-outside-memory", KIND(BALLOON), ANYTHING, .play = balloon_outside},
	{"balloon-twice", KIND(BALLOON), ANYTHING, .play = balloon_twice},
	{"balloon-actual", KIND(BALLOON), WORKS, .play = balloon_actual},
	{"balloon-statistics", KIND(BALLOON), ANYTHING, .play = balloon_statistics},
	{"console-control-short", KIND(CONSOLE), ANYTHING, .with = MULTIPORT, .play = console_short},
	{"console-control-events", KIND(CONSOLE), ANYTHING, .with = MULTIPORT, .play = console_events},
	{"console-control-flood", KIND(CONSOLE), ANYTHING, .with = MULTIPORT, .play = console_flood},
	{"socket-short-header", KIND(SOCKET), REFUSES, .damage = socket_short},
	{"socket-length-huge", KIND(SOCKET), ANYTHING, .damage = socket_length},
	{"socket-length-beyond", KIND(SOCKET), ANYTHING, .damage = socket_more_than_said},
	{"socket-operation-unknown", KIND(SOCKET), ANYTHING, .damage = socket_operation},
	{"socket-type-unknown", KIND(SOCKET), ANYTHING, .damage = socket_type},
	{"socket-source-forged", KIND(SOCKET), ANYTHING, .damage = socket_forged},
	{"socket-elsewhere", KIND(SOCKET), ANYTHING, .damage = socket_elsewhere},
	{"socket-no-connection", KIND(SOCKET), ANYTHING, .damage = socket_no_connection},
	{"socket-flood", KIND(SOCKET), ANYTHING, .play = socket_flood},
	RULES_END,
};
