/* What a loader tells, by each of the protocols that start.S is entered by. */
#pragma once

#define BOOT_PVH 0
#define BOOT_MULTIBOOT 1
#define BOOT_LINUX 2

#ifndef __ASSEMBLER__
#include <stdint.h>

struct boot {
	const char *words;   /* the command line */
	uint64_t memory_end; /* of the guest's memory below 4 GiB; 0: not told */
};

/* `info` is what the loader has in its register. */
struct boot boot_read(unsigned protocol, const void *info);
#endif
