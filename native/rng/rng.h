/* A virtio entropy device's data path: bytes of a character device for the driver's buffers
 * (virtio 1.2, 5.4).
 *
 * One thread in C reads the source straight into what the driver offers, and touches no Python. A
 * request gets up to PV_RNG_REQUEST_MAX bytes, and one at least, so it waits as long as the source
 * has none: it is never answered by nothing. A source that fails, or ends, is asked again after a
 * second. A ring that breaks the rules, a buffer to be read, and one without room, break the
 * device. */
#ifndef PV_RNG_H
#define PV_RNG_H

#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_RNG_REQUEST_MAX 65536 /* bytes that a request is answered by */

struct pv_rng;
struct pv_virtio_irq;

/* Since the device was made. */
struct pv_rng_stats {
	uint64_t requests;  /* answered */
	uint64_t bytes;
	uint64_t throttled; /* times that a request had to wait for the limit */
	uint64_t blocked;   /* times that one had to wait for the source */
	uint64_t errors;    /* reads that failed, or met the source's end */
	uint64_t kicks;
	uint64_t interrupts; /* turns that ended with an interrupt */
};

/* `fd` is the source, non-blocking, borrowed until pv_rng_free; `rate` a limit in bytes a second,
 * 0: none. -ENOMEM; what eventfd(2) says. */
int pv_rng_new(int fd, uint64_t rate, struct pv_rng **out);
/* The device is stopped. */
void pv_rng_free(struct pv_rng *rng);

/* Serve the queue, which is borrowed until pv_rng_stop, as is `irq`. -EBUSY: started already; what
 * pthread_create(3) says; nothing runs then. */
int pv_rng_start(struct pv_rng *rng, const struct pv_queue *queue, struct pv_virtio_irq *irq);
/* End the thread. Without one: nothing. -ETIMEDOUT: it goes on, and nothing that was handed over
 * may be freed until a later call has returned 0. */
int pv_rng_stop(struct pv_rng *rng, uint64_t timeout_ns);
/* As pv_rng_stop, for who is to start it again with the same queue; -ETIMEDOUT: all goes on as
 * before. */
int pv_rng_drain(struct pv_rng *rng, uint64_t timeout_ns);

/* Why the source failed, if it did since the last call: an errno, ENODATA at its end; otherwise 0.
 * Asked for after pv_virtio_irq_news, which comes when a failure is another one than the last. Any
 * thread. */
int pv_rng_take_failure(struct pv_rng *rng);
/* Any thread, at any time. */
void pv_rng_stats(const struct pv_rng *rng, struct pv_rng_stats *stats);

#endif
