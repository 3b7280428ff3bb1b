#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vcpu/memory.h"

/* The C library has no mbind(2). Of the count of bits the kernel takes one less. */
int pv_memory_bind(void *start, uint64_t size, int policy, const uint64_t *nodes, uint32_t words)
{
	unsigned long bits = words * 64UL + 1;

	return syscall(SYS_mbind, start, size, policy, nodes, bits, 0UL) < 0 ? -errno : 0;
}
