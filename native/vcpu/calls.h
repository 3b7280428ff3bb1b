/* Ioctls that the kernel takes its time for, on a thread, while whoever needs them has other things to
 * do. */
#ifndef PV_CALLS_H
#define PV_CALLS_H

#include <stdint.h>

struct pv_call {
	uint64_t request;
	uint64_t argument; /* a number, or an address; what is there is borrowed until pv_calls_free */
};

struct pv_calls;

/* Begin to make them on a descriptor, which is borrowed as well, one after the other as long as none
 * fails; -ENOMEM, -EAGAIN. */
int pv_calls_begin(int fd, const struct pv_call *calls, uint32_t count, struct pv_calls **out);
/* Wait until they are made: 0, or -errno of one, whose index is in `failed` then. */
int pv_calls_wait(struct pv_calls *calls, uint32_t *failed);
/* Wait, too, and free what there is of it. */
void pv_calls_free(struct pv_calls *calls);

#endif
