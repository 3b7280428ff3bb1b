/* Port and memory-mapped I/O: which range of guest addresses is served by whom.
 *
 * A range belongs to C (a port handler) or to Python (the access leaves pv_vcpu_run). What nobody
 * claims reads as all ones and swallows writes, without leaving C. Ranges are added before the
 * first vCPU runs and never change, so lookups take no lock. */
#ifndef PV_BUS_H
#define PV_BUS_H

#include <stdint.h>

#define PV_SPACE_PIO 0
#define PV_SPACE_MMIO 1

struct pv_bus;

/* Serves one byte; `offset` counts from the start of the range. Called by vCPU threads. */
typedef uint8_t (*pv_port_read)(void *opaque, uint16_t offset);
typedef void (*pv_port_write)(void *opaque, uint16_t offset, uint8_t value);

/* -ENOMEM. The bus outlives every vCPU that uses it. */
int pv_bus_new(struct pv_bus **out);
void pv_bus_free(struct pv_bus *bus);

/* Serve ports base..base+size-1 in C, byte by byte. `opaque` is borrowed.
 * -EINVAL (empty, beyond 0xffff), -EEXIST (overlap), -ENOSPC (table full). */
int pv_bus_add_ports(struct pv_bus *bus, uint16_t base, uint16_t size, pv_port_read read,
                     pv_port_write write, void *opaque);

/* Hand accesses that lie within the range to Python. Errors as above. */
int pv_bus_claim(struct pv_bus *bus, uint32_t space, uint64_t base, uint64_t size);

#endif
