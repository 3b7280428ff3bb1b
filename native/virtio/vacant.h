/* What serves the queues of a block device without a backend: every request ends in an I/O error.
 *
 * One thread for all queues. A driver that waits for an answer gets one; nothing else of a request
 * is looked at. A ring whose rules are broken, and a request without a status byte, break the
 * device, as with a backend (native/block/block.h). */
#ifndef PV_VACANT_H
#define PV_VACANT_H

#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_VACANT_QUEUES 64 /* at most */

struct pv_vacant;
struct pv_virtio_irq;

/* Serve `count` queues (1 to PV_VACANT_QUEUES); what is in the rings already is answered at once.
 * `irq` and what `queues` names are borrowed until pv_vacant_stop. -EINVAL, -ENOMEM, or what
 * eventfd(2) or pthread_create(3) say; nothing runs then. */
int pv_vacant_start(const struct pv_queue *queues, uint32_t count, struct pv_virtio_irq *irq,
                    struct pv_vacant **out);

/* End the thread; no request is in flight then. NULL: nothing. -ETIMEDOUT: it goes on, until a
 * later call has returned 0. */
int pv_vacant_stop(struct pv_vacant *vacant, uint64_t timeout_ns);

#endif
