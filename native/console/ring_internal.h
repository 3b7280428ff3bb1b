/* A ring of bytes between one producer thread and one consumer thread, without locks.
 *
 * The ends may be different threads at different times if something else orders them (a mutex).
 * Every store that the other end can see is sequentially consistent, so that callers may pair it
 * with a "the other side sleeps" flag of their own. */
#ifndef PV_RING_INTERNAL_H
#define PV_RING_INTERNAL_H

#include <stdint.h>

struct pv_ring;

/* `size` is a power of two from 1 to 2^30 bytes: -EINVAL otherwise; -ENOMEM. */
int pv_ring_new(uint32_t size, struct pv_ring **out);
void pv_ring_free(struct pv_ring *ring);

/* Bytes held and bytes of room; each end may see its own news only, never too much. */
uint32_t pv_ring_used(const struct pv_ring *ring);
uint32_t pv_ring_room(const struct pv_ring *ring);

/* Producer: append one byte. -ENOSPC when the ring is full. */
int pv_ring_put(struct pv_ring *ring, uint8_t byte);

/* Consumer: the byte `offset` places from the oldest, or -EAGAIN when there are not that many. */
int pv_ring_peek(const struct pv_ring *ring, uint32_t offset);

/* Consumer: the oldest bytes that lie in one piece; `count` is 0 when the ring is empty. */
const uint8_t *pv_ring_span(const struct pv_ring *ring, uint32_t *count);

/* The oldest bytes, up to `size`; their count. Any thread, while one of the
 * ends stands still. */
uint32_t pv_ring_copy(const struct pv_ring *ring, uint8_t *data, uint32_t size);

/* Consumer: forget the oldest `count` bytes, at most pv_ring_used(). */
void pv_ring_drop(struct pv_ring *ring, uint32_t count);

#endif
