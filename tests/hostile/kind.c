#include "kind.h"

#include <stddef.h>

#include "arena.h"
#include "block.h"
#include "fs.h"
#include "memory.h"
#include "net.h"
#include "socket.h"

void *request_add(struct request *request, uint32_t length, enum direction direction)
{
	struct segment *segment = &request->segments[request->count++];

	segment->at = arena_take(length, direction == IN ? DEVICE_WRITES : DEVICE_READS);
	segment->length = length;
	segment->direction = direction;
	return segment->at;
}

/* A device that only reads says no more than that it has. */
static enum outcome judge_output(const struct request *request, uint32_t length)
{
	(void)request;
	return length == 0 ? OUTCOME_NOTHING : OUTCOME_BAD;
}

static enum outcome judge_entropy(const struct request *request, uint32_t length)
{
	(void)request;
	return length == 0 ? OUTCOME_NOTHING : OUTCOME_SERVED;
}

static void fill_entropy(const struct device *device, struct request *request)
{
	(void)device;
	request_add(request, 64, IN);
}

static void fill_console(const struct device *device, struct request *request)
{
	(void)device;
	memcpy(request_add(request, 8, OUT), "hostile\n", 8);
}

/* A page that nothing else is in, to the balloon. */
static void fill_balloon(const struct device *device, struct request *request)
{
	static uint8_t page[4096] __attribute__((aligned(4096)));
	uint32_t frame = (uint32_t)((uintptr_t)page >> 12);

	(void)device;
	memcpy(request_add(request, sizeof(frame), OUT), &frame, sizeof(frame));
}

static const struct kind kinds[] = {
	{NET, "net", NET_FEATURES, 3, 1, net_fill, judge_output},
	{BLOCK, "block", BLOCK_FEATURES, 1, 0, block_fill, block_judge},
	{CONSOLE, "console", INDIRECT_DESC | BIT(1), 4, 1, fill_console, judge_output},
	{ENTROPY, "entropy", INDIRECT_DESC, 1, 0, fill_entropy, judge_entropy},
	{BALLOON, "balloon", INDIRECT_DESC | BIT(1), 3, 0, fill_balloon, judge_output},
	{SOCKET, "socket", INDIRECT_DESC, 3, 1, socket_fill, judge_output},
	{FILES, "fs", INDIRECT_DESC, 2, 1, fs_fill, fs_judge},
};

const struct kind *kind_find(uint32_t id)
{
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (kinds[i].id == id)
			return &kinds[i];
	return NULL;
}

uint16_t kind_queues(const struct device *device)
{
	uint64_t accepted = device->accepted;

	switch (device->id) {
	case NET:
		return accepted & NET_CTRL_VQ ? 3 : 2;
	case CONSOLE:
		return accepted & BIT(1) ? 4 : 2;
	case BALLOON:
		return accepted & BIT(1) ? 3 : 2;
	default:
		return device->kind->queues;
	}
}
