/* Requests of a queue that a fault keeps from beginning (virtio/fault.h). */
#ifndef PV_BLOCK_FAULT_INTERNAL_H
#define PV_BLOCK_FAULT_INTERNAL_H

#include "block/request_internal.h"
#include "virtio/fault_internal.h"

/* One queue's; its thread's alone. */
struct pv_block_faults {
	struct pv_faults *rules;
	uint32_t armed;                /* pv_faults_armed, as of this batch */
	uint32_t generation;           /* of the rules, when `lost` was last gone through */
	struct pv_block_request *late; /* both by their times, the earliest first */
	struct pv_block_request *lost;
};

/* Let the rules have a request that was read and not begun. True: it is kept, for
 * pv_block_faults_release; false: go on with it, unless its `status` says that it has failed. */
bool pv_block_faults_take(struct pv_block_faults *faults, struct pv_block_request *request,
                          uint64_t now);

/* The next request that is kept no longer, to go on with as above, or NULL. At the end of the
 * device's service, when it is `stopping`, there are none that are kept: what is late begins, what
 * is lost, by a rule that is still there, fails. */
struct pv_block_request *pv_block_faults_release(struct pv_block_faults *faults, uint64_t now,
                                                 bool stopping);

/* Nanoseconds until there is another one, or PV_FOREVER. */
uint64_t pv_block_faults_wait(const struct pv_block_faults *faults, uint64_t now);

#endif
