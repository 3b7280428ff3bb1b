/* A block device's queues (worker.c), and what its life (block.c) has to do with them. */
#ifndef PV_BLOCK_INTERNAL_H
#define PV_BLOCK_INTERNAL_H

#include <stdatomic.h>

#include "block/fault_internal.h"
#include "block/work_internal.h"
#include "iothread/internal.h"
#include "thread_internal.h"
#include "throttle_internal.h"

/* Each is written by one thread only, and read by any. */
struct pv_block_counters {
	_Atomic uint64_t requests[6]; /* reads to others, as in struct pv_block_stats */
	_Atomic uint64_t bytes_read;
	_Atomic uint64_t bytes_written;
	_Atomic uint64_t errors;
	_Atomic uint64_t throttled;
	_Atomic uint64_t interrupts;
	_Atomic uint64_t suppressed;
};

/* What serves one queue; its thread's alone while that runs, the counters apart. */
struct pv_block_worker {
	struct pv_member member; /* first, so that one is found by the other */
	struct pv_watch kick;
	struct pv_iothread *thread;
	struct pv_block *block;
	struct pv_virtqueue *ring;
	struct pv_block_request *requests; /* by head; touched as they are needed */
	struct pv_block_request *held;     /* waits for a token of the throttle */
	uint64_t held_ns;                  /* and how long, at least */
	struct pv_block_faults faults;
	_Atomic uint32_t in_flight; /* written by the thread only */
	_Atomic uint32_t obeyed;    /* the order of its last turn; the same */
	bool pushed;                /* something, since the last publish */
	uint32_t batch;             /* requests taken in this turn */
	uint64_t batch_bytes;       /* and their buffers */
	struct pv_block_counters *counters;
	struct pv_chain chain;
};

/* The low bits of an order; the others number the orders. */
enum pv_block_phase {
	PV_BLOCK_SERVING,
	PV_BLOCK_DRAINING, /* nothing new is begun */
	PV_BLOCK_STOPPING, /* and with nothing in flight the threads are left */
	PV_BLOCK_GIVEN_UP, /* the same; what is left ends without a trace in the guest */
	PV_BLOCK_PHASES,
};

struct pv_block {
	struct pv_block_file file;
	struct pv_block_limits limits;
	struct pv_throttle throttle;
	struct pv_iothread *iothread; /* or NULL */
	struct pv_virtio_irq *irq;
	struct pv_block_worker *workers;
	uint32_t count;
	_Atomic uint32_t order;
	atomic_bool broken;
	pthread_mutex_t lock; /* for `quiet` */
	pthread_cond_t quiet; /* a queue has nothing in flight, after an order */
	_Atomic uint64_t noted_ns; /* when the last failure of the host's was noted */
	_Atomic uint64_t noted;    /* its errno, and above that its type; 0: it was taken */
	struct pv_block_counters counters[PV_BLOCK_QUEUES];
};

static inline enum pv_block_phase pv_block_phase(const struct pv_block *b)
{
	return (enum pv_block_phase)(atomic_load(&b->order) % PV_BLOCK_PHASES);
}

/* What an iothread calls. */
extern const struct pv_member_ops PV_BLOCK_OPS;

#endif
