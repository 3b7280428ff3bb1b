/* What serves the queues of a device that has nothing behind it: every request ends in an error.
 *
 * One thread for all queues. A driver that waits for an answer gets one; nothing else of a request
 * is looked at. A ring whose rules are broken, and a request without room for the answer, break the
 * device, as with a backend (native/block/block.h). */
#ifndef PV_VACANT_H
#define PV_VACANT_H

#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_VACANT_QUEUES 64 /* at most */

struct pv_vacant;
struct pv_virtio_irq;

/* Whose requests they are. */
enum pv_vacant_kind {
	PV_VACANT_BLOCK, /* I/O error (virtio 1.2, 5.2.6) */
	PV_VACANT_FS,    /* ENOTCONN, as of a FUSE server that has gone (5.11.6) */
};

/* Serve `count` queues (1 to PV_VACANT_QUEUES); what is in the rings already is answered at once.
 * `irq` and what `queues` names are borrowed until pv_vacant_stop. -EINVAL, -ENOMEM, or what
 * eventfd(2) or pthread_create(3) say; nothing runs then. */
int pv_vacant_start(enum pv_vacant_kind kind, const struct pv_queue *queues, uint32_t count,
                    struct pv_virtio_irq *irq, struct pv_vacant **out);

/* End the thread; no request is in flight then. NULL: nothing. -ETIMEDOUT: it goes on, until a
 * later call has returned 0. */
int pv_vacant_stop(struct pv_vacant *vacant, uint64_t timeout_ns);

/* As pv_vacant_stop, for who is to start another on the same queues; -ETIMEDOUT: all goes on as
 * before. */
int pv_vacant_drain(struct pv_vacant *vacant, uint64_t timeout_ns);

#endif
