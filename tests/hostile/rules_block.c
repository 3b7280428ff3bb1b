/* Requests to disks (virtio 1.2, 5.2.6). They write to sector 0 of a disk that is not read-only. */
#include <stddef.h>

#include "arena.h"
#include "block.h"
#include "io.h"
#include "memory.h"
#include "rule.h"

#define SECTOR 512u
#define DISCARD_ALIGNED 8u

struct range {
	uint64_t sector;
	uint32_t count, flags;
};

static uint64_t capacity(const struct play *play)
{
	uintptr_t config = play->device->base + CONFIG;

	return (uint64_t)read32(config + 4) << 32 | read32(config);
}

static int is_read_only(const struct play *play)
{
	return (play->device->offered & BLOCK_RO) != 0;
}

/* Submit what block_request makes. */
static enum answer ask(struct play *play, uint32_t type, uint64_t sector, uint32_t length,
                       enum direction direction)
{
	play->request = (struct request){0};
	block_request(&play->request, type, sector, length, direction);
	lay_out(play->queue, &play->request);
	return play_submit(play);
}

static enum answer write_and_read(struct play *play)
{
	uint8_t pattern[SECTOR];
	enum answer answer;

	if (is_read_only(play))
		return skipped(play, "the disk is read-only");
	for (unsigned i = 0; i < SECTOR; i++)
		pattern[i] = (uint8_t)(i * 7 + (i >> 8) + 1);
	play->request = (struct request){0};
	block_request(&play->request, BLOCK_OUT, 0, SECTOR, OUT);
	memcpy(play->request.segments[1].at, pattern, SECTOR);
	lay_out(play->queue, &play->request);
	answer = play_submit(play);
	if (answer != SERVED)
		return answer;
	answer = ask(play, BLOCK_IN, 0, SECTOR, IN);
	if (answer == SERVED && memcmp(play->request.segments[1].at, pattern, SECTOR) != 0)
		return wrong(play, "does not read what was written");
	return answer;
}

static enum answer write_read_only(struct play *play)
{
	if (!is_read_only(play))
		return skipped(play, "the disk may be written to");
	return ask(play, BLOCK_OUT, 0, SECTOR, OUT);
}

static enum answer read_at_capacity(struct play *play)
{
	return ask(play, BLOCK_IN, capacity(play), SECTOR, IN);
}

static enum answer read_over_capacity(struct play *play)
{
	return ask(play, BLOCK_IN, capacity(play) - 1, 2 * SECTOR, IN);
}

static enum answer write_over_capacity(struct play *play)
{
	return ask(play, BLOCK_OUT, capacity(play) - 1, 2 * SECTOR, OUT);
}

static enum answer sector_wraps(struct play *play)
{
	return ask(play, BLOCK_IN, UINT64_MAX, 2 * SECTOR, IN);
}

/* In bytes this is 0. */
static enum answer sector_shifted_out(struct play *play)
{
	return ask(play, BLOCK_IN, BIT(55), SECTOR, IN);
}

static enum answer sector_negative(struct play *play)
{
	return ask(play, BLOCK_IN, BIT(54) | BIT(63), SECTOR, IN);
}

static enum answer part_of_a_sector(struct play *play)
{
	return ask(play, BLOCK_IN, 0, SECTOR - 1, IN);
}

static enum answer no_data(struct play *play)
{
	return ask(play, BLOCK_IN, 0, 0, IN);
}

static enum answer type_unknown(struct play *play)
{
	enum answer answer = ask(play, 0x7777, 0, SECTOR, IN);

	if (answer == ERROR && block_status(&play->request) != STATUS_UNSUPP)
		return wrong(play, "the status is not UNSUPP");
	return answer;
}

static enum answer type_huge(struct play *play)
{
	return ask(play, 0x40000000, 0, SECTOR, OUT);
}

/* Data the wrong way round. */
static enum answer read_to_readable(struct play *play)
{
	return ask(play, BLOCK_IN, 0, SECTOR, OUT);
}

static enum answer write_from_writable(struct play *play)
{
	return ask(play, BLOCK_OUT, 0, SECTOR, IN);
}

static enum answer identity(struct play *play, uint32_t length)
{
	enum answer answer = ask(play, BLOCK_GET_ID, 0, length, IN);

	/* How much of it is written is the device's affair. */
	return answer == WRONG && block_status(&play->request) == STATUS_OK ? SERVED : answer;
}

static enum answer identity_short(struct play *play)
{
	return identity(play, 5);
}

static enum answer identity_long(struct play *play)
{
	return identity(play, 100);
}

/* Without one of its pieces: 0 is the header, the last the status. */
static enum answer without(struct play *play, unsigned piece)
{
	struct request *request = &play->request;

	*request = (struct request){0};
	play->device->kind->fill(play->device, request);
	for (unsigned i = piece; i + 1 < request->count; i++)
		request->segments[i] = request->segments[i + 1];
	request->count--;
	lay_out(play->queue, request);
	make_available(play->queue, request->head);
	show(play->queue);
	kick(play->device, play->queue);
	return play_observe_queue(play, play->queue);
}

static enum answer no_header(struct play *play)
{
	return without(play, 0);
}

static void short_header(struct play *play)
{
	play_head(play)->length = 15;
}

static void long_header(struct play *play)
{
	play_head(play)->length = 0x20;
	play_head(play)->address = (uintptr_t)arena_take(0x20, DEVICE_READS);
}

static void no_status(struct play *play)
{
	play->request.tail--;
	play_tail(play)->flags = 0; /* a header, and what the driver has to say */
	play->request.room = 0;
}

/* There may be a status in the data's last byte then. */
static enum answer empty_status(struct play *play)
{
	play_lay_out(play);
	play_tail(play)->length = 0;
	make_available(play->queue, play->request.head);
	show(play->queue);
	kick(play->device, play->queue);
	return play_observe_queue(play, play->queue);
}

/* Of so many bytes: the same range again and again, and what is left of it. */
static enum answer ask_ranges(struct play *play, uint32_t type, struct range range, uint32_t length)
{
	uint8_t *at;

	play->request = (struct request){0};
	block_request(&play->request, type, 0, length, OUT);
	at = play->request.segments[1].at;
	for (uint32_t done = 0; done < length; done += (uint32_t)sizeof(range))
		memcpy(at + done, &range, length - done < sizeof(range) ? length - done : sizeof(range));
	lay_out(play->queue, &play->request);
	return play_submit(play);
}

/* Of discards and of writes of zeroes the same; either may be unknown to the device. */
static enum answer both(struct play *play, struct range range, uint32_t length)
{
	enum answer answer = ask_ranges(play, BLOCK_DISCARD, range, length);

	if (!(REFUSES & MAY(answer)) || answer == BROKEN)
		return answer;
	return ask_ranges(play, BLOCK_ZERO, range, length);
}

static enum answer range_over_capacity(struct play *play)
{
	return both(play, (struct range){capacity(play) - 8, 16, 0}, sizeof(struct range));
}

static enum answer range_wraps(struct play *play)
{
	return both(play, (struct range){UINT64_MAX - 7, 16, 0}, sizeof(struct range));
}

static enum answer range_count_huge(struct play *play)
{
	return both(play, (struct range){8, 0xffffffff, 0}, sizeof(struct range));
}

static enum answer range_flags(struct play *play)
{
	return both(play, (struct range){0, DISCARD_ALIGNED, 0xfffffffe}, sizeof(struct range));
}

static enum answer range_cut_off(struct play *play)
{
	return both(play, (struct range){0, DISCARD_ALIGNED, 0}, sizeof(struct range) - 1);
}

static enum answer ranges_many(struct play *play)
{
	return both(play, (struct range){0, 0, 0xfffffffe}, 1024 * sizeof(struct range));
}

#define DISK KIND(BLOCK)
const struct rule block_rules[] = {
	{"block-write-and-read", DISK, MAY(SERVED), .play = write_and_read},
	{"block-write-read-only", DISK, REFUSES, .without = BLOCK_RO, .play = write_read_only},
	{"block-read-at-capacity", DISK, REFUSES, .play = read_at_capacity},
	{"block-read-over-capacity", DISK, REFUSES, .play = read_over_capacity},
	{"block-write-over-capacity", DISK, REFUSES, .play = write_over_capacity},
	{"block-sector-wraps", DISK, REFUSES, .play = sector_wraps},
	{"block-sector-shifted-out", DISK, REFUSES, .play = sector_shifted_out},
	{"block-sector-negative", DISK, REFUSES, .play = sector_negative},
	{"block-part-of-a-sector", DISK, ANYTHING, .play = part_of_a_sector},
	{"block-no-data", DISK, ANYTHING, .play = no_data},
	{"block-type-unknown", DISK, MAY(ERROR) | MAY(BROKEN), .play = type_unknown},
	{"block-type-huge", DISK, REFUSES, .play = type_huge},
	{"block-read-to-readable", DISK, ANYTHING, .play = read_to_readable},
	{"block-write-from-writable", DISK, ANYTHING, .play = write_from_writable},
	{"block-identity-short", DISK, ANYTHING, .play = identity_short},
	{"block-identity-long", DISK, ANYTHING, .play = identity_long},
	{"block-no-header", DISK, REFUSES, .play = no_header},
	{"block-short-header", DISK, REFUSES, .damage = short_header},
	{"block-long-header", DISK, ANYTHING, .damage = long_header},
	{"block-no-status", DISK, REFUSES, .damage = no_status},
	{"block-empty-status", DISK, ANYTHING, .play = empty_status},
	{"block-range-over-capacity", DISK, REFUSES, .play = range_over_capacity},
	{"block-range-wraps", DISK, REFUSES, .play = range_wraps},
	{"block-range-count-huge", DISK, REFUSES, .play = range_count_huge},
	{"block-range-flags-unknown", DISK, REFUSES, .play = range_flags},
	{"block-range-cut-off", DISK, REFUSES, .play = range_cut_off},
	{"block-ranges-many", DISK, ANYTHING, .play = ranges_many},
	RULES_END,
};
