/* Which devices there are. */
#pragma once

#include "device.h"

/* What a loader gives by the PVH protocol: hvm_start_info of Xen's public headers, version 1. */
struct start_info {
	uint32_t magic, version, flags, module_count;
	uint64_t modules, cmdline, rsdp, memory_map;
	uint32_t memory_map_entries, reserved;
};

/* Those that the command line names (virtio_mmio.device=SIZE@BASE:IRQ), else those in the windows
 * where monitors are known to have them; their number. */
unsigned find_devices(const struct start_info *info, struct device *devices);

/* The number that the command line gives a word (`name=`), or `otherwise`. */
unsigned find_number(const struct start_info *info, const char *name, unsigned otherwise);

/* Whether the command line has a word, and whether a list of it (`name=WORD,WORD`) has one. */
bool find_word(const struct start_info *info, const char *name);
bool find_in_list(const struct start_info *info, const char *name, const char *word);

/* The end of the guest's memory below 4 GiB; 0: not told. */
uint64_t find_memory_end(const struct start_info *info);
