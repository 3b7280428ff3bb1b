/* A ring buffer in memory as the host's end of a port: it takes whatever is written, and keeps the
 * newest bytes until they are read. All functions but the first and last may be called by any
 * thread at any time; none waits for more than a copy. */
#ifndef PV_RINGBUF_H
#define PV_RINGBUF_H

#include <stdint.h>

#define PV_RINGBUF_MAX 67108864 /* bytes */

struct pv_ringbuf;

/* -EINVAL: `size` is no power of two from 2 to PV_RINGBUF_MAX; -ENOMEM. */
int pv_ringbuf_new(uint32_t size, struct pv_ringbuf **out);
void pv_ringbuf_free(struct pv_ringbuf *ring);

/* Append bytes, in place of the oldest where there is no room. */
void pv_ringbuf_write(struct pv_ringbuf *ring, const uint8_t *data, uint64_t size);

/* Take the oldest bytes, `size` at most; how many. */
uint32_t pv_ringbuf_read(struct pv_ringbuf *ring, uint8_t *data, uint32_t size);

#endif
