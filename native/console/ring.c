#include "console/ring_internal.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#define CACHE_LINE 64

struct pv_ring {
	/* Both count bytes since the start, modulo 2^32. */
	_Alignas(CACHE_LINE) _Atomic uint32_t head; /* stored by the producer */
	_Alignas(CACHE_LINE) _Atomic uint32_t tail; /* stored by the consumer */
	_Alignas(CACHE_LINE) uint32_t mask;
	uint8_t data[];
};

int pv_ring_new(uint32_t size, struct pv_ring **out)
{
	struct pv_ring *ring;
	size_t bytes = (sizeof(*ring) + size + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);

	*out = NULL;
	if (size == 0 || size > UINT32_C(1) << 30 || (size & (size - 1)) != 0)
		return -EINVAL;
	ring = aligned_alloc(CACHE_LINE, bytes);
	if (!ring)
		return -ENOMEM;
	atomic_init(&ring->head, 0);
	atomic_init(&ring->tail, 0);
	ring->mask = size - 1;
	*out = ring;
	return 0;
}

void pv_ring_free(struct pv_ring *ring)
{
	free(ring);
}

uint32_t pv_ring_used(const struct pv_ring *ring)
{
	/* The tail first: the head read after it can only make more of what is there. */
	uint32_t tail = atomic_load(&ring->tail);
	uint32_t used = atomic_load(&ring->head) - tail;

	return used <= ring->mask ? used : ring->mask + 1;
}

uint32_t pv_ring_room(const struct pv_ring *ring)
{
	return ring->mask + 1 - pv_ring_used(ring);
}

int pv_ring_put(struct pv_ring *ring, uint8_t byte)
{
	uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);

	if (head - atomic_load(&ring->tail) > ring->mask)
		return -ENOSPC;
	ring->data[head & ring->mask] = byte;
	atomic_store(&ring->head, head + 1);
	return 0;
}

int pv_ring_peek(const struct pv_ring *ring, uint32_t offset)
{
	uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);

	if (atomic_load(&ring->head) - tail <= offset)
		return -EAGAIN;
	return ring->data[(tail + offset) & ring->mask];
}

const uint8_t *pv_ring_span(const struct pv_ring *ring, uint32_t *count)
{
	uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	uint32_t used = atomic_load(&ring->head) - tail;
	uint32_t start = tail & ring->mask;
	uint32_t until_end = ring->mask + 1 - start;

	*count = used < until_end ? used : until_end;
	return &ring->data[start];
}

uint32_t pv_ring_copy(const struct pv_ring *ring, uint8_t *data, uint32_t size)
{
	uint32_t tail = atomic_load(&ring->tail);
	uint32_t count = atomic_load(&ring->head) - tail;

	if (count > size)
		count = size;
	for (uint32_t i = 0; i < count; i++)
		data[i] = ring->data[(tail + i) & ring->mask];
	return count;
}

void pv_ring_drop(struct pv_ring *ring, uint32_t count)
{
	uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);

	atomic_store(&ring->tail, tail + count);
}
