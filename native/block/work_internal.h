/* How a request becomes operations on the file, one after the other. */
#ifndef PV_BLOCK_WORK_INTERNAL_H
#define PV_BLOCK_WORK_INTERNAL_H

#include <pthread.h>

#include "block/overlay_internal.h"
#include "block/request_internal.h"

/* The file, as all queues of a device see it. */
struct pv_block_file {
	int fd;
	uint32_t flags; /* PV_BLOCK_... */
	struct pv_overlay *overlay; /* has what is written, and nothing of the file changes; or NULL */
	uint32_t offset_align;
	uint32_t memory_align;
	bool cached;        /* see struct pv_io */
	bool write_through; /* the driver does not flush: what is written is flushed at once */
	uint8_t id[PV_BLOCK_ID_BYTES];
	pthread_mutex_t lock; /* held while part of an aligned unit is read, changed and written */
};

/* Before the first operation of a request that was checked. */
void pv_block_prepare(const struct pv_block_file *file, struct pv_block_request *request);

/* Put the next operation into `request->io` and return true; false: there is none, `status` is
 * the answer. */
bool pv_block_next(struct pv_block_file *file, struct pv_block_request *request);

/* Take the result of `request->io` into account. */
void pv_block_absorb(struct pv_block_file *file, struct pv_block_request *request);

/* After pv_block_absorb: let a request fail that needs many more operations. */
void pv_block_cut(struct pv_block_request *request);

#endif
