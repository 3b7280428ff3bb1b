#include "vcpu/host.h"

#include <cpuid.h>

void pv_host_cpuid(uint32_t function, uint32_t index, uint32_t *registers)
{
	__cpuid_count(function, index, registers[0], registers[1], registers[2], registers[3]);
}
