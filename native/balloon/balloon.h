/* A virtio balloon device's data path: memory that a guest does not need goes back to the host
 * (virtio 1.2, 5.5).
 *
 * One thread in C serves all queues of the device and touches no Python. Pages that the driver puts
 * into the balloon, and free ones that it reports, are given back by madvise(2), runs of pages that
 * lie side by side by one call; they read as zeroes when the guest touches them again. Private
 * memory is dropped (MADV_DONTNEED), of a shared file the hole is punched (MADV_REMOVE), so that it
 * is free for whoever maps it. Pages that leave the balloon need nothing: they come back when they
 * are touched. A ring that breaks the rules, and a buffer of the wrong direction or size, break the
 * device; a page that is not in the guest's memory is left alone, and counted. */
#ifndef PV_BALLOON_H
#define PV_BALLOON_H

#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_BALLOON_PAGE 4096 /* bytes, whatever the host's pages are */
#define PV_BALLOON_TAGS 10   /* of statistics, 5.5.6.4 */

struct pv_balloon;
struct pv_virtio_irq;

/* What the driver has set up; all of it is borrowed until pv_balloon_stop. Queues without a ring
 * were not made. */
struct pv_balloon_activation {
	struct pv_queue inflate;
	struct pv_queue deflate;
	struct pv_queue statistics;
	struct pv_queue reporting;
	const struct pv_memory *memory;
	struct pv_virtio_irq *irq;
	uint8_t keep_reported; /* what is reported has contents that the driver wants back */
};

/* Since the device was made. */
struct pv_balloon_stats {
	uint64_t inflated; /* pages that the driver put into the balloon, and took out of it */
	uint64_t deflated;
	uint64_t reported; /* pages told to be free */
	uint64_t released; /* pages that were given back to the host, of those put in and told of */
	uint64_t releases; /* calls that this took */
	uint64_t kept;     /* pages that were not: of a huge page, or refused by the host */
	uint64_t refused;  /* pages that are not in the guest's memory */
	uint64_t statistics; /* that the driver sent */
	uint64_t kicks;
	uint64_t interrupts; /* turns that ended with an interrupt */
};

/* What the driver said of the guest last, by the tags of 5.5.6.4: 0 swapped in, 1 swapped out, 2
 * major and 3 minor faults, 4 free bytes, 5 total bytes, 6 available bytes, 7 bytes in disk caches, 8
 * and 9 hugetlb allocations and failures. All of it is a driver's word. */
struct pv_balloon_statistics {
	uint64_t values[PV_BALLOON_TAGS]; /* UINT64_MAX: not told */
	uint64_t count;   /* times that the driver sent any */
	uint64_t updated; /* when it did last, in seconds since 1970; 0: never */
};

/* -ENOMEM; what eventfd(2) says. */
int pv_balloon_new(struct pv_balloon **out);
/* The device is stopped. */
void pv_balloon_free(struct pv_balloon *balloon);

/* Serve the queues. -EBUSY: started already; what pthread_create(3) says; nothing runs then. */
int pv_balloon_start(struct pv_balloon *balloon, const struct pv_balloon_activation *activation);
/* End the thread. Without one: nothing. -ETIMEDOUT: it goes on, and nothing that was handed over
 * may be freed until a later call has returned 0. */
int pv_balloon_stop(struct pv_balloon *balloon, uint64_t timeout_ns);
/* As pv_balloon_stop, for who is to start it again with the same queues, which have everything back
 * that was not done; -ETIMEDOUT: all goes on as before. */
int pv_balloon_drain(struct pv_balloon *balloon, uint64_t timeout_ns);

/* Ask the driver for statistics so often, the first time at once; 0: not any more. With `tell`, each answer is
 * news (pv_virtio_irq_news). Any thread, at any time. */
void pv_balloon_poll(struct pv_balloon *balloon, uint64_t interval_ns, uint8_t tell);

/* Any thread, at any time. */
void pv_balloon_stats(const struct pv_balloon *balloon, struct pv_balloon_stats *stats);
void pv_balloon_statistics(const struct pv_balloon *balloon,
                           struct pv_balloon_statistics *statistics);

#endif
