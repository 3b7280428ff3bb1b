/* Accesses that no driver makes: of 8 bytes, across registers, over the window's end, by strings,
 * locked (virtio 1.2, 4.2.2.2). What is in the registers' way is the device's own affair. */
#include "arena.h"
#include "io.h"
#include "machine.h"
#include "rule.h"

#define ONES UINT64_MAX

static enum answer wide_reads(struct play *play)
{
	uintptr_t base = play->device->base;

	for (uint32_t reg = 0; reg < CONFIG; reg += 4)
		read64(base + reg);
	if ((uint32_t)read64(base) != VIRTIO_MAGIC && (uint32_t)read64(base) != 0 &&
	    (uint32_t)read64(base) != UINT32_MAX)
		return wrong(play, "8 bytes of MagicValue are something else");
	return play_valid(play);
}

/* QueueNotify is left alone: any value there is a proper kick, or none. */
static enum answer wide_writes(struct play *play)
{
	uintptr_t base = play->device->base;

	for (uint32_t reg = 0; reg < CONFIG; reg += 4)
		if (reg != QUEUE_NOTIFY && reg != QUEUE_NOTIFY - 4) {
			write64(base + reg, ONES);
			write64(base + reg, 0);
		}
	return play_valid(play);
}

static enum answer across_registers(struct play *play)
{
	uintptr_t base = play->device->base;

	for (uint32_t reg = 4; reg < CONFIG; reg += 4) {
		write16(base + reg - 1, 0xffff);
		write32(base + reg - 2, 0xffffffff);
		write64(base + reg - 3, ONES);
		read16(base + reg - 1);
		read32(base + reg - 2);
		read64(base + reg - 3);
	}
	return play_valid(play);
}

/* The half beyond is in the next window, or nowhere. */
static enum answer over_the_end(struct play *play)
{
	uintptr_t end = play->device->base + play->device->window;

	read16(end - 1);
	write16(end - 1, 0xffff);
	for (uint32_t before = 1; before < 4; before++) {
		read32(end - before);
		write32(end - before, 0xffffffff);
	}
	for (uint32_t before = 1; before < 8; before++) {
		read64(end - before);
		write64(end - before, ONES);
	}
	for (unsigned i = 0; i < machine.device_count; i++)
		if (get(&machine.devices[i], MAGIC_VALUE) != VIRTIO_MAGIC)
			return wrong(play, "a device has lost its MagicValue");
	return play_valid(play);
}

/* All registers at once to memory, and back byte by byte. */
static enum answer strings(struct play *play)
{
	static uint8_t copy[CONFIG];

	copy_words(copy, play->device->base, sizeof(copy) / 4);
	copy_bytes(play->device->base, copy, sizeof(copy));
	return play_valid(play);
}

/* A word that is read and written at once; what is written is what is there. */
static enum answer locked(struct play *play)
{
	static const uint32_t regs[] = {MAGIC_VALUE, QUEUE_NUM, STATUS, CONFIG_GENERATION};

	for (unsigned i = 0; i < sizeof(regs) / sizeof(*regs); i++) {
		locked_or32(play->device->base + regs[i], 0);
		locked_exchange64(play->device->base + regs[i] / 8 * 8);
	}
	return play_valid(play);
}

const struct rule access_rules[] = {
	{"wide-reads", ANY_KIND, WORKS, .play = wide_reads},
	{"wide-writes", ANY_KIND, ANYTHING, .play = wide_writes},
	{"across-registers", ANY_KIND, ANYTHING, .play = across_registers},
	{"over-the-end", ANY_KIND, ANYTHING, .play = over_the_end},
	{"string-accesses", ANY_KIND, ANYTHING, .play = strings},
	{"locked-accesses", ANY_KIND, ANYTHING, .play = locked},
	RULES_END,
};
