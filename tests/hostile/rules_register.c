/* Registers, negotiation and the configuration space (virtio 1.2, 3.1, 4.2.2). */
#include "arena.h"
#include "io.h"
#include "rule.h"

#define REGISTERS_END CONFIG
#define PAGE_END 0x200 /* the smallest window there is */

static const uint32_t read_only[] = {MAGIC_VALUE,   VERSION,          DEVICE_ID,
                                     QUEUE_NUM_MAX, INTERRUPT_STATUS, CONFIG_GENERATION};
static const uint32_t unknown[] = {0x18, 0x1c, 0x28, 0x2c, 0x3c, 0x40, 0x48, 0x4c, 0x54, 0x58,
                                   0x5c, 0x68, 0x6c, 0x74, 0x78, 0x7c, 0xd0, 0xe0, 0xf0, 0xf8};
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static enum answer identity(struct play *play)
{
	const struct device *device = play->device;

	if (get(device, MAGIC_VALUE) != VIRTIO_MAGIC || get(device, VERSION) != 2)
		return wrong(play, "no virtio-mmio of version 2");
	if (get(device, DEVICE_ID) != device->id || !(device->offered & VERSION_1))
		return wrong(play, "does not offer VERSION_1");
	return play_valid(play);
}

static enum answer narrow_reads(struct play *play)
{
	uintptr_t base = play->device->base;

	for (uint32_t reg = 0; reg < REGISTERS_END; reg += 4) {
		read8(base + reg + 3);
		read16(base + reg + 1);
		read32(base + reg + 2);
	}
	return play_valid(play);
}

static enum answer narrow_writes(struct play *play)
{
	static const uint32_t regs[] = {QUEUE_SEL,  QUEUE_NUM, QUEUE_READY,
	                                QUEUE_DESC, STATUS,    DRIVER_FEATURES};

	for (unsigned i = 0; i < COUNT(regs); i++) {
		uintptr_t at = play->device->base + regs[i];

		write8(at, 0);
		write16(at, 0);
		write8(at + 1, 0xff);
		write16(at + 2, 0xffff);
		write32(at + 1, 0xffffffff);
	}
	return play_valid(play);
}

static enum answer unknown_registers(struct play *play)
{
	for (unsigned i = 0; i < COUNT(unknown); i++) {
		get(play->device, unknown[i]);
		set(play->device, unknown[i], 0xffffffff);
	}
	return play_valid(play);
}

static enum answer read_only_registers(struct play *play)
{
	uint32_t before[COUNT(read_only)];

	for (unsigned i = 0; i < COUNT(read_only); i++)
		before[i] = get(play->device, read_only[i]);
	for (unsigned i = 0; i < COUNT(read_only); i++)
		set(play->device, read_only[i], ~before[i]);
	for (unsigned i = 0; i < COUNT(read_only); i++)
		if (get(play->device, read_only[i]) != before[i])
			return wrong(play, "a register that is only read has changed");
	return play_valid(play);
}

static enum answer select_out_of_range(struct play *play)
{
	static const uint32_t selected[] = {0x40, 0x3ff, 0x400, 0xffff, 0x10000, 0x7fffffff, 0xffffffff};

	for (unsigned i = 0; i < COUNT(selected); i++) {
		set(play->device, QUEUE_SEL, selected[i]);
		if ((selected[i] & 0xffff) != 0 && get(play->device, QUEUE_NUM_MAX) != 0)
			return wrong(play, "QueueNumMax of a queue that there is not");
		if ((selected[i] & 0xffff) == 0)
			continue; /* a device may look at 16 bits */
		set(play->device, QUEUE_NUM, 0xffff);
		device_place(play->device, QUEUE_DESC, UINT64_MAX);
		set(play->device, QUEUE_READY, 1);
		get(play->device, QUEUE_READY);
	}
	return play_valid(play);
}

static enum answer notify_out_of_range(struct play *play)
{
	static const uint32_t queues[] = {8, 0x40, 0x3ff, 0x400, 0xffff, 0x7fffffff, 0xffffffff};

	for (unsigned i = 0; i < COUNT(queues); i++)
		set(play->device, QUEUE_NOTIFY, queues[i]);
	return play_valid(play);
}

static enum answer feature_words(struct play *play)
{
	struct device *device = play->device;

	for (uint32_t word = 2; word; word <<= 1) {
		set(device, DEVICE_FEATURES_SEL, word);
		if (word >= 4 && get(device, DEVICE_FEATURES) != 0)
			return wrong(play, "offers features beyond bit 127");
	}
	set(device, DEVICE_FEATURES_SEL, 0xffffffff);
	get(device, DEVICE_FEATURES);
	return play_valid(play);
}

/* Negotiate anew; REFUSED when FEATURES_OK does not stand, else what a request comes to. */
static enum answer negotiate(struct play *play, uint64_t features)
{
	struct device *device = play->device;

	if (!device_reset(device))
		return wrong(play, "does not reset");
	if (!device_negotiate(device, features))
		return REFUSED;
	arena_clear();
	device_queues(device, RING_SIZE);
	set(device, STATUS, get(device, STATUS) | DRIVER_OK);
	if (get(device, STATUS) & NEEDS_RESET)
		return BROKEN;
	return play_valid(play);
}

static enum answer features_not_offered(struct play *play)
{
	uint64_t known = INDIRECT_DESC | VERSION_1;
	uint64_t not_offered = ~play->device->offered & ~known & ~BIT(63);
	enum answer answer = negotiate(play, VERSION_1 | not_offered);

	/* A device that takes them has to be one that works without. */
	play->device->accepted = VERSION_1;
	return answer;
}

static enum answer no_version_1(struct play *play)
{
	return negotiate(play, play->device->offered & ~VERSION_1);
}

static enum answer features_too_late(struct play *play)
{
	device_write_features(play->device, 0);
	device_write_features(play->device, UINT64_MAX);
	set(play->device, STATUS, get(play->device, STATUS) | FEATURES_OK);
	return play_valid(play);
}

static enum answer status_bits_cleared(struct play *play)
{
	static const uint32_t values[] = {ACKNOWLEDGE | DRIVER | FEATURES_OK, ACKNOWLEDGE | DRIVER,
	                                  ACKNOWLEDGE, DRIVER_OK};

	for (unsigned i = 0; i < COUNT(values); i++) {
		set(play->device, STATUS, values[i]);
		kick(play->device, play->queue);
	}
	set(play->device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	return play_valid(play);
}

static enum answer status_unknown_bits(struct play *play)
{
	set(play->device, STATUS, 0xffffff30 | get(play->device, STATUS));
	return play_valid(play);
}

static enum answer status_needs_reset(struct play *play)
{
	set(play->device, STATUS, NEEDS_RESET | get(play->device, STATUS));
	return play_valid(play);
}

static enum answer status_failed(struct play *play)
{
	set(play->device, STATUS, FAILED | get(play->device, STATUS));
	return play_valid(play);
}

static enum answer status_out_of_order(struct play *play)
{
	struct device *device = play->device;

	device_reset(device);
	set(device, STATUS, DRIVER_OK);
	set(device, STATUS, FEATURES_OK | DRIVER_OK);
	kick(device, play->queue);
	set(device, STATUS, DRIVER | DRIVER_OK);
	kick(device, play->queue);
	return SILENCE;
}

/* Whatever the configuration space is told, the driver has not begun. */
static enum answer config_before_driver(struct play *play)
{
	uintptr_t config = play->device->base + CONFIG;

	device_reset(play->device);
	for (uint32_t at = 0; at < PAGE_END - CONFIG; at += 4)
		write32(config + at, 0xffffffff);
	return SILENCE;
}

static enum answer config_accesses(struct play *play)
{
	uintptr_t config = play->device->base + CONFIG;

	for (uint32_t at = 0; at < PAGE_END - CONFIG - 4; at += 3) {
		write8(config + at, read8(config + at));
		write16(config + at, read16(config + at));
		write32(config + at, read32(config + at));
	}
	return play_valid(play);
}

static enum answer config_stable(struct play *play)
{
	const struct device *device = play->device;

	for (unsigned tries = 0; tries < 100; tries++) {
		uint32_t generation = get(device, CONFIG_GENERATION), one = 0, other = 0;

		for (uint32_t at = CONFIG; at < CONFIG + 0x40; at += 4)
			one = one * 31 + get(device, at);
		for (uint32_t at = CONFIG; at < CONFIG + 0x40; at += 4)
			other = other * 31 + get(device, at);
		if (generation != get(device, CONFIG_GENERATION))
			continue;
		return one == other ? SERVED : wrong(play, "changed within one ConfigGeneration");
	}
	return wrong(play, "ConfigGeneration never stands still");
}

static enum answer acknowledge_all(struct play *play)
{
	set(play->device, INTERRUPT_ACK, 0xffffffff);
	return play_valid(play);
}

static enum answer no_shared_memory(struct play *play)
{
	set(play->device, SHM_SEL, 200);
	if (get(play->device, SHM_LENGTH) != UINT32_MAX || get(play->device, SHM_LENGTH + 4) != UINT32_MAX)
		return wrong(play, "a region of shared memory that there is not");
	return play_valid(play);
}

static enum answer reset_clears(struct play *play)
{
	struct device *device = play->device;

	play_valid(play);
	if (!device_reset(device))
		return wrong(play, "does not reset");
	for (uint16_t index = 0; index < kind_queues(device); index++) {
		set(device, QUEUE_SEL, index);
		if (get(device, QUEUE_READY) != 0)
			return wrong(play, "QueueReady is not 0 after a reset");
	}
	return get(device, INTERRUPT_STATUS) == 0 ? SERVED
	                                          : wrong(play, "InterruptStatus is not 0 after a reset");
}

const struct rule register_rules[] = {
	{"identity", ANY_KIND, WORKS, .play = identity},
	{"narrow-reads", ANY_KIND, WORKS, .play = narrow_reads},
	{"narrow-writes", ANY_KIND, ANYTHING, .play = narrow_writes},
	{"unknown-registers", ANY_KIND, WORKS, .play = unknown_registers},
	{"read-only-registers", ANY_KIND, WORKS, .play = read_only_registers},
	{"select-out-of-range", ANY_KIND, WORKS, .play = select_out_of_range},
	{"notify-out-of-range", ANY_KIND, WORKS, .play = notify_out_of_range},
	{"feature-words", ANY_KIND, WORKS, .play = feature_words},
	{"features-not-offered", ANY_KIND, MAY(REFUSED), .play = features_not_offered},
	{"no-version-1", ANY_KIND, ANYTHING, .play = no_version_1},
	{"features-too-late", ANY_KIND, WORKS, .play = features_too_late},
	{"status-bits-cleared", ANY_KIND, ANYTHING, .play = status_bits_cleared},
	{"status-unknown-bits", ANY_KIND, ANYTHING, .play = status_unknown_bits},
	{"status-needs-reset", ANY_KIND, ANYTHING, .play = status_needs_reset},
	{"status-failed", ANY_KIND, ANYTHING, .play = status_failed},
	{"status-out-of-order", ANY_KIND, ANYTHING, .play = status_out_of_order},
	{"config-before-driver", ANY_KIND, ANYTHING, .play = config_before_driver},
	{"config-accesses", ANY_KIND, WORKS, .play = config_accesses},
	{"config-stable", ANY_KIND, WORKS, .play = config_stable},
	{"acknowledge-all", ANY_KIND, WORKS, .play = acknowledge_all},
	{"no-shared-memory", ANY_KIND, WORKS, .play = no_shared_memory},
	{"reset-clears", ANY_KIND, WORKS, .play = reset_clears},
	RULES_END,
};
