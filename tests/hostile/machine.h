/* What all rules may know of the machine. */
#pragma once

#include "device.h"

struct machine {
	uint64_t memory_end; /* below 4 GiB; 0: not told */
	unsigned rounds;     /* of what is done again and again: hostile.rounds=N */
	struct device *devices;
	unsigned device_count;
};

extern struct machine machine;
