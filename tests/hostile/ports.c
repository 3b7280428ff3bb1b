#include "ports.h"

#include "io.h"

#define TURNS 16

static uint32_t last; /* what was read, which a register may want to be told */

/* A number that nobody foresees but who reads this (Marsaglia's xorshift). */
static uint32_t chance(void)
{
	static uint32_t state = 2463534242u;

	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static void read_one(uint16_t port)
{
	switch (chance() % 4) {
	case 0:
		in8(port);
		break;
	case 1:
		in16(port);
		break;
	default:
		last = in32(port);
	}
}

static void write_one(uint16_t port)
{
	uint32_t value = chance() % 4 ? last + chance() % 3 - 1 : chance();

	switch (chance() % 4) {
	case 0:
		out8(port, (uint8_t)value);
		break;
	case 1:
		out16(port, (uint16_t)value);
		break;
	default:
		out32(port, value);
	}
}

/* More often one where a register may begin. */
static uint16_t one_of(struct ports ports)
{
	uint32_t offset = chance() % ports.count;

	return (uint16_t)(ports.first + (chance() % 2 ? offset : offset & ~3u));
}

void ports_disturb(struct ports ports)
{
	for (unsigned turn = 0; ports.count && turn < TURNS; turn++) {
		read_one(one_of(ports));
		write_one(one_of(ports));
	}
}
