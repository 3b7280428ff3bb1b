#include "ringbuf.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Positions count bytes since the beginning; `size` is a power of two, so that they may wrap. */
struct pv_ringbuf {
	pthread_mutex_t lock;
	uint32_t size;
	uint32_t written;
	uint32_t taken;
	uint8_t *data;
};

int pv_ringbuf_new(uint32_t size, struct pv_ringbuf **out)
{
	struct pv_ringbuf *ring;

	*out = NULL;
	if (size < 2 || size > PV_RINGBUF_MAX || (size & (size - 1)))
		return -EINVAL;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return -ENOMEM;
	ring->data = malloc(size);
	if (!ring->data) {
		free(ring);
		return -ENOMEM;
	}
	ring->size = size;
	pthread_mutex_init(&ring->lock, NULL);
	*out = ring;
	return 0;
}

void pv_ringbuf_free(struct pv_ringbuf *ring)
{
	if (!ring)
		return;
	pthread_mutex_destroy(&ring->lock);
	free(ring->data);
	free(ring);
}

/* Where a position is, and how many of `count` bytes follow one another there. */
static uint8_t *place(const struct pv_ringbuf *ring, uint32_t position, uint32_t *count)
{
	uint32_t offset = position & (ring->size - 1);

	if (*count > ring->size - offset)
		*count = ring->size - offset;
	return ring->data + offset;
}

void pv_ringbuf_write(struct pv_ringbuf *ring, const uint8_t *data, uint64_t size)
{
	pthread_mutex_lock(&ring->lock);
	if (size > ring->size) {
		data += size - ring->size;
		size = ring->size;
	}
	while (size > 0) {
		uint32_t count = (uint32_t)size;
		uint8_t *to = place(ring, ring->written, &count);

		memcpy(to, data, count);
		ring->written += count;
		data += count;
		size -= count;
	}
	if (ring->written - ring->taken > ring->size)
		ring->taken = ring->written - ring->size;
	pthread_mutex_unlock(&ring->lock);
}

uint32_t pv_ringbuf_read(struct pv_ringbuf *ring, uint8_t *data, uint32_t size)
{
	uint32_t done = 0;

	pthread_mutex_lock(&ring->lock);
	if (size > ring->written - ring->taken)
		size = ring->written - ring->taken;
	while (done < size) {
		uint32_t count = size - done;
		const uint8_t *from = place(ring, ring->taken, &count);

		memcpy(data + done, from, count);
		ring->taken += count;
		done += count;
	}
	pthread_mutex_unlock(&ring->lock);
	return done;
}
