/* The lookup side of the bus, for the vCPU loop. */
#ifndef PV_BUS_INTERNAL_H
#define PV_BUS_INTERNAL_H

#include "vcpu/bus.h"

struct pv_range {
	uint64_t base;
	uint64_t size;
	pv_port_read read; /* NULL: Python serves the range */
	pv_port_write write;
	void *opaque;
};

/* The range that holds `address`, or NULL. */
const struct pv_range *pv_bus_find(const struct pv_bus *bus, uint32_t space, uint64_t address);

#endif
