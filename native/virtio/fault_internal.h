/* A device's rules, and how its threads ask what they make of a request. */
#ifndef PV_FAULT_INTERNAL_H
#define PV_FAULT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "virtio/fault.h"

#define PV_FAULT_BROKEN 0x80000000 /* in pv_faults_armed: the device needs a reset */

struct pv_faults {
	_Atomic uint32_t armed;      /* see pv_faults_armed */
	_Atomic uint32_t generation; /* changes when a rule goes */
	pthread_mutex_t lock;        /* of what is below, and of changes of `armed` */
	uint32_t count;
	uint32_t last_id;
	struct pv_fault_state rules[PV_FAULT_RULES];
};

/* What is asked about. */
struct pv_fault_subject {
	uint32_t op;     /* PV_FAULT_READ and so on, one of them */
	uint64_t sector; /* of a read or a write: where it begins, */
	uint64_t bytes;  /* and the length of its data */
};

struct pv_fault_verdict {
	uint64_t delay_ns;
	int error;           /* an errno, or 0 */
	uint32_t dropped_by; /* a rule, or 0 */
	bool doubled;
	bool corrupts;
	uint64_t offset; /* of the byte, below `bytes` */
};

void pv_faults_init(struct pv_faults *faults);
void pv_faults_destroy(struct pv_faults *faults);

/* The operations that some rule may still strike, and PV_FAULT_BROKEN; 0: go on as always. */
static inline uint32_t pv_faults_armed(const struct pv_faults *faults)
{
	return atomic_load_explicit(&faults->armed, memory_order_relaxed);
}

void pv_faults_set_broken(struct pv_faults *faults, bool broken);

/* Let every rule that matches count the subject; what those do that strike. */
struct pv_fault_verdict pv_faults_judge(struct pv_faults *faults,
                                        const struct pv_fault_subject *subject);

/* Whether a rule is still there. */
bool pv_faults_has(struct pv_faults *faults, uint32_t id);

#endif
