/* What the parts of an entropy device share: its requests (request.c), its thread and life (rng.c).
 */
#ifndef PV_RNG_INTERNAL_H
#define PV_RNG_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "rng/rng.h"
#include "thread_internal.h"
#include "throttle_internal.h"

/* In the order of struct pv_rng_stats. */
enum pv_rng_counter {
	PV_RNG_REQUESTS,
	PV_RNG_BYTES,
	PV_RNG_THROTTLED,
	PV_RNG_BLOCKED,
	PV_RNG_ERRORS,
	PV_RNG_KICKS,
	PV_RNG_INTERRUPTS,
	PV_RNG_COUNTERS,
};

/* What it waits for when it does nothing. */
enum pv_rng_wait {
	PV_RNG_MORE,   /* nothing: there may be more to do */
	PV_RNG_KICK,   /* the driver */
	PV_RNG_SOURCE, /* the source to have bytes */
	PV_RNG_TIME,   /* a moment, `until` */
	PV_RNG_END,    /* its end: the device is broken */
};

/* Used by the thread alone while that runs. */
struct pv_rng {
	int fd;
	int wake_fd;
	struct pv_throttle throttle;
	uint64_t piece; /* bytes that a request is answered by at most */

	/* From start to stop. */
	bool running;
	struct pv_thread thread;
	struct pv_queue queue;
	struct pv_virtio_irq *irq;
	enum pv_rng_wait wait;
	uint64_t until;
	bool was_empty; /* the last read found nothing */
	int last_error;
	struct pv_chain chain; /* while it is looked at */

	_Atomic int failure; /* for pv_rng_take_failure */
	_Atomic uint64_t counters[PV_RNG_COUNTERS];
};

void pv_rng_count(struct pv_rng *rng, enum pv_rng_counter counter, uint64_t more);

/* As a driver finds it that makes its device ready. */
void pv_rng_begin(struct pv_rng *rng, const struct pv_queue *queue, struct pv_virtio_irq *irq);
/* Answer requests at the time `now`, up to the budget; `wait` says what for, then. */
void pv_rng_serve(struct pv_rng *rng, uint64_t now);

#endif
