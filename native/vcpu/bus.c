#include <errno.h>
#include <stdlib.h>

#include "vcpu/bus_internal.h"

#define RANGES_MAX 64

struct pv_bus {
	/* Sorted by nothing: a handful of entries, the busiest added first. */
	struct pv_range ranges[2][RANGES_MAX];
	unsigned count[2];
};

int pv_bus_new(struct pv_bus **out)
{
	*out = calloc(1, sizeof(**out));
	return *out ? 0 : -ENOMEM;
}

void pv_bus_free(struct pv_bus *bus)
{
	free(bus);
}

static int add(struct pv_bus *bus, uint32_t space, const struct pv_range *range)
{
	uint64_t last = range->base + (range->size - 1);

	if (space > PV_SPACE_MMIO || range->size == 0 || last < range->base)
		return -EINVAL;
	if (space == PV_SPACE_PIO && last > UINT16_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < bus->count[space]; i++) {
		const struct pv_range *other = &bus->ranges[space][i];

		if (range->base <= other->base + (other->size - 1) && other->base <= last)
			return -EEXIST;
	}
	if (bus->count[space] == RANGES_MAX)
		return -ENOSPC;
	bus->ranges[space][bus->count[space]++] = *range;
	return 0;
}

int pv_bus_add_ports(struct pv_bus *bus, uint16_t base, uint16_t size, pv_port_read read,
                     pv_port_write write, void *opaque)
{
	struct pv_range range = {
		.base = base, .size = size, .read = read, .write = write, .opaque = opaque,
	};

	return read && write ? add(bus, PV_SPACE_PIO, &range) : -EINVAL;
}

int pv_bus_claim(struct pv_bus *bus, uint32_t space, uint64_t base, uint64_t size)
{
	struct pv_range range = {.base = base, .size = size};

	return add(bus, space, &range);
}

const struct pv_range *pv_bus_find(const struct pv_bus *bus, uint32_t space, uint64_t address)
{
	for (unsigned i = 0; i < bus->count[space]; i++) {
		const struct pv_range *range = &bus->ranges[space][i];

		if (address - range->base < range->size)
			return range;
	}
	return NULL;
}
