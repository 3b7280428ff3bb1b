/* What the parts of a balloon device share: counters and the end of all (state.c), pages that are
 * given back (pages.c), statistics (statistics.c), the thread (thread.c), and the device's life
 * (balloon.c). */
#ifndef PV_BALLOON_INTERNAL_H
#define PV_BALLOON_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "balloon/balloon.h"
#include "thread_internal.h"

/* In the order of struct pv_balloon_stats. */
enum pv_balloon_counter {
	PV_BALLOON_INFLATED,
	PV_BALLOON_DEFLATED,
	PV_BALLOON_REPORTED,
	PV_BALLOON_RELEASED,
	PV_BALLOON_RELEASES,
	PV_BALLOON_KEPT,
	PV_BALLOON_REFUSED,
	PV_BALLOON_STATISTICS,
	PV_BALLOON_KICKS,
	PV_BALLOON_INTERRUPTS,
	PV_BALLOON_COUNTERS,
};

enum { PV_BALLOON_INFLATE, PV_BALLOON_DEFLATE, PV_BALLOON_REPORT, PV_BALLOON_TELL };
#define PV_BALLOON_QUEUES 4

/* What a queue waits for when nothing is done for it. */
enum pv_balloon_wait {
	PV_BALLOON_MORE, /* nothing: it has more to do */
	PV_BALLOON_KICK, /* the driver */
	PV_BALLOON_TIME, /* of statistics: that they are to be asked for */
	PV_BALLOON_IDLE, /* it was not made */
};

#define PV_BALLOON_PIECE 1024 /* pages that are looked at together */

struct pv_balloon_queue {
	struct pv_queue queue;
	enum pv_balloon_wait wait;
	uint64_t done; /* bytes of the chain at its head: of page numbers, or of reported memory */
};

/* Used by the thread alone while that runs. */
struct pv_balloon {
	int wake_fd;

	/* From start to stop. */
	bool running;
	struct pv_thread thread;
	struct pv_balloon_queue queues[PV_BALLOON_QUEUES];
	const struct pv_memory *memory;
	uint64_t host_page; /* the size of those that guest memory consists of */
	struct pv_virtio_irq *irq;
	bool keep_reported;
	bool notify; /* the driver asked for an interrupt, this turn */
	bool broken;
	uint64_t asked_at; /* when statistics were asked for last; 0: not yet */
	struct pv_chain chain; /* while it is looked at */
	uint32_t pages[PV_BALLOON_PIECE];

	_Atomic uint64_t interval_ns; /* of pv_balloon_poll */
	atomic_bool tell;
	_Atomic uint64_t values[PV_BALLOON_TAGS];
	_Atomic uint64_t updated;
	_Atomic uint64_t counters[PV_BALLOON_COUNTERS];
};

void pv_balloon_count(struct pv_balloon *balloon, enum pv_balloon_counter counter, uint64_t more);
/* Break the device; what it says is copied. */
void pv_balloon_break(struct pv_balloon *balloon, const char *why);
/* Take the chain at the head of a queue; false: there is none, and the queue waits for a kick, or
 * the device is broken. */
bool pv_balloon_pop(struct pv_balloon *balloon, struct pv_balloon_queue *queue);

/* Do some of what the driver put into the queue. */
void pv_balloon_serve_pages(struct pv_balloon *balloon, unsigned index);
/* Read statistics, or ask for them, at the time `now`. */
void pv_balloon_serve_statistics(struct pv_balloon *balloon, uint64_t now);

/* As a driver finds it that makes its device ready. */
void pv_balloon_begin(struct pv_balloon *balloon, const struct pv_balloon_activation *activation);
/* Give each queue its turn, on a device that is not broken. */
void pv_balloon_serve(struct pv_balloon *balloon, uint64_t now);
/* The thread. */
void *pv_balloon_run(void *balloon);

#endif
