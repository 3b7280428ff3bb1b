/* Ports, device memory and time. */
#pragma once

#include <stdint.h>

/* A second or so, which nothing that answers takes; and what nothing takes that lives. Time stamp
 * counters run at 1 to 5 GHz. */
#define QUIET_TICKS (UINT64_C(1) << 31)
#define LIMIT_TICKS (UINT64_C(1) << 35)

static inline void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline uint64_t ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static inline uint8_t read8(uintptr_t at)
{
	return *(volatile uint8_t *)at;
}

static inline uint16_t read16(uintptr_t at)
{
	uint16_t value;

	__asm__ volatile("movw %1, %0" : "=r"(value) : "m"(*(volatile uint16_t *)at) : "memory");
	return value;
}

static inline uint32_t read32(uintptr_t at)
{
	uint32_t value;

	__asm__ volatile("movl %1, %0" : "=r"(value) : "m"(*(volatile uint32_t *)at) : "memory");
	return value;
}

static inline void write8(uintptr_t at, uint8_t value)
{
	__asm__ volatile("movb %0, %1" : : "q"(value), "m"(*(volatile uint8_t *)at) : "memory");
}

static inline void write16(uintptr_t at, uint16_t value)
{
	__asm__ volatile("movw %0, %1" : : "r"(value), "m"(*(volatile uint16_t *)at) : "memory");
}

static inline void write32(uintptr_t at, uint32_t value)
{
	__asm__ volatile("movl %0, %1" : : "r"(value), "m"(*(volatile uint32_t *)at) : "memory");
}
