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

static inline void out16(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint16_t in16(uint16_t port)
{
	uint16_t value;

	__asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline uint32_t in32(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
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

/* By MMX, whose registers nothing else uses: 32-bit code has no other way. */
static inline uint64_t read64(uintptr_t at)
{
	uint64_t value;

	__asm__ volatile("movq %1, %%mm0; movq %%mm0, %0"
	                 : "=m"(value)
	                 : "m"(*(volatile uint64_t *)at)
	                 : "memory");
	return value;
}

static inline void write64(uintptr_t at, uint64_t value)
{
	__asm__ volatile("movq %1, %%mm0; movq %%mm0, %0"
	                 : "=m"(*(volatile uint64_t *)at)
	                 : "m"(value)
	                 : "memory");
}

static inline void copy_words(void *to, uintptr_t from, uint32_t words)
{
	__asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
}

static inline void copy_bytes(uintptr_t to, const void *from, uint32_t bytes)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static inline void locked_or32(uintptr_t at, uint32_t value)
{
	__asm__ volatile("lock orl %1, %0"
	                 : "+m"(*(volatile uint32_t *)at)
	                 : "r"(value)
	                 : "memory", "cc");
}

/* Put back what is there. */
static inline void locked_exchange64(uintptr_t at)
{
	uint32_t low = read32(at), high = read32(at + 4);

	__asm__ volatile("lock cmpxchg8b %0"
	                 : "+m"(*(volatile uint64_t *)at), "+a"(low), "+d"(high)
	                 : "b"(low), "c"(high)
	                 : "memory", "cc");
}
