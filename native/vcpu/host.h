/* What the processor that we run on says of itself. */
#ifndef PV_HOST_H
#define PV_HOST_H

#include <stdint.h>

/* Execute CPUID: EAX, EBX, ECX and EDX go to registers[0] to [3]. */
void pv_host_cpuid(uint32_t function, uint32_t index, uint32_t *registers);

#endif
