/* Queues in the hands of the host's kernel, through a file of one of its vhost devices
 * (linux/vhost.h).
 *
 * The kernel raises the device's line by itself, and so cannot touch InterruptStatus: see
 * pv_virtio_irq_lend. All calls return 0 or what the ioctl says. */
#ifndef PV_VHOST_INTERNAL_H
#define PV_VHOST_INTERNAL_H

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "virtio/virtqueue.h"

/* Those that are the transport's, and every device's. */
#define PV_VHOST_RING_FEATURES                                                                     \
	(UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX |              \
	 UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC)

struct pv_virtio_irq;

int pv_vhost_control(int fd, unsigned long request, const void *argument);
/* Tell what was negotiated, and where guest memory is. -EOPNOTSUPP: the kernel lacks one of the
 * features. */
int pv_vhost_set_up(int fd, uint64_t features, const struct pv_memory *memory);
/* Lend a ring, which goes on where it stands. The kernel signals `error_fd`, an eventfd, when it
 * finds its rules broken. */
int pv_vhost_set_ring(int fd, uint32_t index, const struct pv_queue *queue,
                      struct pv_virtio_irq *irq, int error_fd);
/* Take it back, where the kernel stands. It has let go of it. */
void pv_vhost_take_ring(int fd, uint32_t index, struct pv_virtqueue *ring);

#endif
