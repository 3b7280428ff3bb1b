/* How what serves a device lives on a thread. */
#ifndef PV_IOTHREAD_INTERNAL_H
#define PV_IOTHREAD_INTERNAL_H

#include "iothread/io_internal.h"
#include "iothread/iothread.h"

#define PV_SERVE_END (PV_FOREVER - 1) /* of what pv_member_ops.serve returns: it is over */

struct pv_member;

/* Both run on the thread. */
struct pv_member_ops {
	/* Do what there is to do, up to a budget, for others wait: after a kick, a completion or for
	 * no reason. Return how long to wait for one of these at most, in nanoseconds; 0: do not,
	 * there is more; PV_FOREVER; PV_SERVE_END:
	 * nothing is in flight and it need not be called again. */
	uint64_t (*serve)(struct pv_member *member);
	/* Take back an operation that was started on `member->engine`; NULL: none ever is. */
	void (*complete)(struct pv_member *member, struct pv_io *io);
};

struct pv_member {
	const struct pv_member_ops *ops;
	struct pv_watch *watches; /* `serve` is called after any, those without `fd` (-1) apart; */
	uint32_t watch_count;     /* borrowed until pv_iothread_detach */
	const char *device;       /* whose it is, as pv_crash_device takes it; NULL: nobody's */
	struct pv_engine *engine; /* the thread's, from pv_iothread_attach on */
	struct pv_member *next;   /* the thread's own from here on */
	bool over;
	bool gone;
};

/* Serve `member` from now on; `make` makes the engine if it is the first, NULL: any will do. `ops`,
 * the watches and their count are set, all else is zero. -EINVAL: the thread has an engine of
 * another kind; or what `make` and pthread_create(3) say. Any thread but this one. */
int pv_iothread_attach(struct pv_iothread *thread, pv_engine_make *make, struct pv_member *member);

/* Wait until `serve` of a member that was attached has returned PV_SERVE_END, which is the caller's
 * to bring about, and it is not touched any more. -ETIMEDOUT: it has not by `deadline`
 * (pv_deadline), and stays attached. Any thread but this one. */
int pv_iothread_detach(struct pv_iothread *thread, struct pv_member *member, uint64_t deadline);

/* If any will do for the first member, let it be this one; who says so first is heard. */
void pv_iothread_prefer(struct pv_iothread *thread, pv_engine_make *make);

#endif
