#include "boot.h"

#define MAP_RAM 1
#define LOW_MEMORY_END (UINT64_C(1) << 32)

/* hvm_start_info of Xen's public headers, version 1. */
#define PVH_MAGIC 0x336ec578u

struct pvh_info {
	uint32_t magic, version, flags, module_count;
	uint64_t modules, cmdline, rsdp, memory_map;
	uint32_t memory_map_entries, reserved;
};

struct pvh_entry {
	uint64_t address, size;
	uint32_t type, reserved;
};

/* Multiboot 0.6.96, 3.3, as far as it is of use here. */
#define HAS_MEMORY 1
#define HAS_CMDLINE 4

struct multiboot_info {
	uint32_t flags, lower_kib, upper_kib, device, cmdline;
};

/* struct boot_params of Linux's boot protocol, which names its fields by their places. */
#define E820_COUNT 0x1e8
#define CMDLINE 0x228
#define E820_TABLE 0x2d0

struct __attribute__((packed)) e820_entry {
	uint64_t address, size;
	uint32_t type;
};

static uint64_t end_of(uint64_t end, uint32_t type, uint64_t address, uint64_t size)
{
	uint64_t last = address + size;

	return type == MAP_RAM && last <= LOW_MEMORY_END && last > end ? last : end;
}

static const char *text(uint64_t address)
{
	return address ? (const char *)(uintptr_t)address : "";
}

static struct boot read_pvh(const struct pvh_info *info)
{
	struct boot boot = {.words = ""};
	const struct pvh_entry *map;

	if (info->magic != PVH_MAGIC)
		return boot;
	boot.words = text(info->cmdline);
	map = (const struct pvh_entry *)(uintptr_t)info->memory_map;
	for (unsigned i = 0; info->version >= 1 && i < info->memory_map_entries; i++)
		boot.memory_end = end_of(boot.memory_end, map[i].type, map[i].address, map[i].size);
	return boot;
}

static struct boot read_multiboot(const struct multiboot_info *info)
{
	struct boot boot = {.words = info->flags & HAS_CMDLINE ? text(info->cmdline) : ""};

	if (info->flags & HAS_MEMORY)
		boot.memory_end = (UINT64_C(1024) + info->upper_kib) << 10;
	return boot;
}

static struct boot read_linux(const uint8_t *params)
{
	struct boot boot = {.words = text(*(const uint32_t *)(const void *)(params + CMDLINE))};
	const struct e820_entry *map = (const void *)(params + E820_TABLE);

	for (unsigned i = 0; i < params[E820_COUNT]; i++)
		boot.memory_end = end_of(boot.memory_end, map[i].type, map[i].address, map[i].size);
	return boot;
}

struct boot boot_read(unsigned protocol, const void *info)
{
	switch (protocol) {
	case BOOT_PVH:
		return read_pvh(info);
	case BOOT_MULTIBOOT:
		return read_multiboot(info);
	default:
		return read_linux(info);
	}
}
