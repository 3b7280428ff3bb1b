/* Packets and commands of network devices (virtio 1.2, 5.1.6). */
#include <stddef.h>

#include "arena.h"
#include "memory.h"
#include "net.h"
#include "rule.h"

#define RECEIVE 0
#define CONTROL 2
#define COMMAND_ERROR 1
#define LARGE_BYTES (128u << 10)

static struct net_header *header(const struct play *play)
{
	return play->request.segments[0].at;
}

static void short_header(struct play *play)
{
	play_head(play)->length = sizeof(struct net_header) - 1;
}

static void header_alone(struct play *play)
{
	play_head(play)->length = sizeof(struct net_header);
}

static void short_frame(struct play *play)
{
	play_head(play)->length = sizeof(struct net_header) + 1;
}

static void large_frame(struct play *play)
{
	play_head(play)->address = (uintptr_t)arena_take(LARGE_BYTES, DEVICE_READS);
	play_head(play)->length = LARGE_BYTES;
}

static void all_ones(struct play *play)
{
	memset(header(play), 0xff, sizeof(struct net_header));
}

static void checksum_beyond(struct play *play)
{
	header(play)->flags = 1;
	header(play)->checksum_start = 0xfff0;
	header(play)->checksum_offset = 0xffff;
}

static void segments_of_nothing(struct play *play)
{
	header(play)->flags = 1;
	header(play)->gso_type = 1;
	header(play)->header_length = 0xffff;
	header(play)->gso_size = 0;
}

/* Have a frame come into `length` bytes at the receive queue. */
static enum answer receive(struct play *play, uint32_t length, uint16_t flags)
{
	struct queue *queue = &play->device->queues[RECEIVE];
	enum answer answer;
	void *piece = arena_take(length ? length : 16, flags & WRITE ? DEVICE_WRITES : DEVICE_READS);

	queue->desc[0] = (struct desc){(uintptr_t)piece, length, flags, 0};
	make_available(queue, 0);
	show(queue);
	kick(play->device, queue);
	answer = play_valid(play);
	if (!(WORKS & MAY(answer)))
		return answer;
	answer = play_observe_queue(play, queue);
	if (answer == DONE && queue->used->ring[0].length > length)
		return wrong(play, "used length is more than it may write");
	return answer;
}

static enum answer receive_whole(struct play *play)
{
	struct queue *queue = &play->device->queues[RECEIVE];
	enum answer answer = receive(play, 2048, WRITE);
	const struct net_header *came = (const struct net_header *)(uintptr_t)queue->desc[0].address;

	if (answer == SILENCE)
		return skipped(play, "no frame comes from the network");
	if (answer == DONE && came->buffers != 1)
		return wrong(play, "num_buffers is not 1");
	return answer;
}

static enum answer receive_small(struct play *play)
{
	return receive(play, 20, WRITE);
}

static enum answer receive_tiny(struct play *play)
{
	return receive(play, 1, WRITE);
}

static enum answer receive_readable(struct play *play)
{
	return receive(play, 2048, 0);
}

/* A command of so many bytes, whose answer has to be an error. */
static enum answer command(struct play *play, const uint8_t *bytes, uint32_t length, uint32_t room)
{
	struct queue *queue = &play->device->queues[CONTROL];
	struct request request = {0};
	uint8_t *ack;

	if (!(play->device->accepted & NET_CTRL_VQ) || !queue->size)
		return skipped(play, "the device has no control queue");
	memcpy(request_add(&request, length, OUT), bytes, length);
	ack = request_add(&request, room, IN);
	*ack = 0xff;
	lay_out(queue, &request);
	make_available(queue, request.head);
	show(queue);
	kick(play->device, queue);
	if (play_observe_queue(play, queue) != DONE)
		return get(play->device, STATUS) & NEEDS_RESET ? BROKEN : SILENCE;
	if (*ack == 0xff)
		return DONE;
	return *ack == COMMAND_ERROR ? ERROR : SERVED;
}

static enum answer command_unknown(struct play *play)
{
	static const uint8_t bytes[] = {0xee, 0xee, 1, 2, 3, 4};

	return command(play, bytes, sizeof(bytes), 1);
}

static enum answer command_short(struct play *play)
{
	static const uint8_t bytes[] = {0};

	return command(play, bytes, sizeof(bytes), 1);
}

/* So many addresses that their bytes are none in 32 bits. */
static enum answer command_table(struct play *play)
{
	static const uint8_t bytes[] = {1, 0, 0xab, 0xaa, 0xaa, 0xaa, 1, 2, 3, 4, 5, 6};

	return command(play, bytes, sizeof(bytes), 1);
}

static enum answer command_no_pairs(struct play *play)
{
	static const uint8_t bytes[] = {4, 0, 0, 0};

	return command(play, bytes, sizeof(bytes), 1);
}

static enum answer command_many_pairs(struct play *play)
{
	static const uint8_t bytes[] = {4, 0, 0xff, 0xff};

	return command(play, bytes, sizeof(bytes), 1);
}

#define NIC KIND(NET)
const struct rule net_rules[] = {
	{"net-short-header", NIC, REFUSES, .damage = short_header},
	{"net-header-alone", NIC, ANYTHING, .damage = header_alone},
	{"net-short-frame", NIC, ANYTHING, .damage = short_frame},
	{"net-large-frame", NIC, ANYTHING, .damage = large_frame},
	{"net-header-of-ones", NIC, ANYTHING, .damage = all_ones},
	{"net-checksum-beyond", NIC, ANYTHING, .damage = checksum_beyond},
	{"net-segments-of-nothing", NIC, ANYTHING, .damage = segments_of_nothing},
	{"net-receive", NIC, WORKS, .play = receive_whole},
	{"net-receive-small", NIC, ANYTHING, .play = receive_small},
	{"net-receive-tiny", NIC, ANYTHING, .play = receive_tiny},
	{"net-receive-readable", NIC, ANYTHING, .play = receive_readable},
	{"net-command-unknown", NIC, REFUSES, .play = command_unknown},
	{"net-command-short", NIC, REFUSES, .play = command_short},
	{"net-command-table", NIC, REFUSES, .play = command_table},
	{"net-command-no-pairs", NIC, REFUSES, .play = command_no_pairs},
	{"net-command-many-pairs", NIC, REFUSES, .play = command_many_pairs},
	RULES_END,
};
