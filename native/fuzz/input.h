/* What every fuzz target reads, and how it ends a run. */
#ifndef PV_FUZZ_INPUT_H
#define PV_FUZZ_INPUT_H

#include <stdlib.h>
#include <string.h>

#include "virtio/virtqueue_internal.h"

#define REQUIRE(condition)                                                                         \
	do {                                                                                       \
		if (!(condition))                                                                  \
			abort();                                                                   \
	} while (0)

struct input {
	const uint8_t *data;
	size_t size;
};

/* Little-endian; zeroes behind the end. */
static inline uint64_t take(struct input *input, size_t bytes)
{
	uint64_t value = 0;
	size_t count = bytes < input->size ? bytes : input->size;

	memcpy(&value, input->data, count);
	input->data += count;
	input->size -= count;
	return value;
}

/* Fill anything. */
static inline void take_bytes(struct input *input, void *data, size_t size)
{
	for (size_t i = 0; i < size; i++)
		((uint8_t *)data)[i] = (uint8_t)take(input, 1);
}

/* A descriptor with any contents and flags. The other bits of `kind` are for the target, to make
 * of it something that a device looks at for longer. */
static inline struct pv_desc take_desc(struct input *input, uint8_t *kind)
{
	struct pv_desc desc = {0};

	*kind = (uint8_t)take(input, 1);
	desc.address = take(input, 2);
	desc.length = (uint32_t)take(input, 2);
	desc.flags = *kind & 7;
	desc.next = (uint16_t)take(input, 1);
	return desc;
}

#endif
