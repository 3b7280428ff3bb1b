/* Ports of a machine's own, and rubbish for them. */
#pragma once

#include <stdint.h>

struct ports {
	uint16_t first, count; /* 0: none */
};

/* Read and write some, by 1, 2 and 4 bytes, now and then what was read before. */
void ports_disturb(struct ports ports);
