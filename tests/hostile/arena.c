#include "arena.h"

#include <stddef.h>

#include "memory.h"

#define ARENA_BYTES (512 << 10)
#define GUARD_BYTES 32
#define GUARD_BYTE 0x96
#define GUARD_WORD UINT32_C(0xa5c3960f)
#define PIECES_MAX 48

struct piece {
	uint32_t *at;
	uint32_t bytes;
	uint32_t words; /* rounded up: what is over is guard */
	uint32_t sum;
	enum use use;
};

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(4096)));
static uint32_t arena_used;
static struct piece pieces[PIECES_MAX];
static unsigned piece_count;
static int is_sealed;

static void put_guard(uint32_t *at)
{
	for (unsigned i = 0; i < GUARD_BYTES / 4; i++)
		at[i] = GUARD_WORD;
}

static int is_guard(const uint32_t *at)
{
	uint32_t difference = 0;

	for (unsigned i = 0; i < GUARD_BYTES / 4; i++)
		difference |= at[i] ^ GUARD_WORD;
	return difference == 0;
}

static int is_kept(const struct piece *piece)
{
	const uint8_t *bytes = (const uint8_t *)piece->at;

	for (uint32_t i = piece->bytes; i < piece->words * 4; i++)
		if (bytes[i] != GUARD_BYTE)
			return 0;
	return is_guard(piece->at - GUARD_BYTES / 4) && is_guard(piece->at + piece->words);
}

static uint32_t sum_of(const struct piece *piece)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < piece->words; i++)
		sum = (sum << 1 | sum >> 31) + piece->at[i];
	return sum;
}

void arena_clear(void)
{
	arena_used = 0;
	piece_count = 0;
	is_sealed = 0;
}

void *arena_take(uint32_t bytes, enum use use)
{
	uint32_t rounded = (bytes + 15) & ~UINT32_C(15);
	uint8_t *start = arena + arena_used;
	struct piece *piece = &pieces[piece_count];

	if (piece_count == PIECES_MAX || arena_used + rounded + 2 * GUARD_BYTES > ARENA_BYTES)
		return arena; /* a mistake of ours, that shows as damage */
	piece_count++;
	piece->at = (uint32_t *)(void *)(start + GUARD_BYTES);
	piece->words = rounded / 4;
	piece->bytes = bytes;
	piece->use = use;
	put_guard((uint32_t *)(void *)start);
	memset(piece->at, 0, bytes);
	memset((uint8_t *)piece->at + bytes, GUARD_BYTE, rounded - bytes);
	put_guard(piece->at + piece->words);
	arena_used += rounded + GUARD_BYTES; /* the next begins with this one's second guard */
	return piece->at;
}

void arena_seal(void)
{
	for (unsigned i = 0; i < piece_count; i++)
		if (pieces[i].use == DEVICE_READS)
			pieces[i].sum = sum_of(&pieces[i]);
	is_sealed = 1;
}

void arena_freeze(void)
{
	for (unsigned i = 0; i < piece_count; i++)
		pieces[i].use = DEVICE_READS;
	arena_seal();
}

const char *arena_damage(void)
{
	for (unsigned i = 0; i < piece_count; i++) {
		const struct piece *piece = &pieces[i];

		if (!is_kept(piece))
			return "wrote outside of the buffers";
		if (is_sealed && piece->use == DEVICE_READS && sum_of(piece) != piece->sum)
			return "wrote to what is the driver's";
	}
	return NULL;
}
