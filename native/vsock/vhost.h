/* A socket device whose queues the host's kernel serves: /dev/vhost-vsock (linux/vhost.h).
 *
 * The guest's sockets and those of the host then meet in the kernel, by the address family
 * AF_VSOCK. The event queue stays here, where nothing is told. One thread waits for the kernel to
 * find a broken ring, which breaks the device. */
#ifndef PV_VHOST_VSOCK_H
#define PV_VHOST_VSOCK_H

#include <stdint.h>

#include "virtio/virtqueue.h"

struct pv_vhost_vsock;
struct pv_virtio_irq;

/* What the driver has set up; borrowed until pv_vhost_vsock_stop. */
struct pv_vhost_vsock_activation {
	uint64_t features; /* as negotiated */
	struct pv_queue rx;
	struct pv_queue tx;
	struct pv_virtio_irq *irq;
	const struct pv_memory *memory;
};

/* Take the address of the guest's. `fd` is borrowed until pv_vhost_vsock_free. -EADDRINUSE: another
 * guest has it; -ENOMEM; what the ioctls and eventfd(2) say. */
int pv_vhost_vsock_new(int fd, uint64_t guest_cid, struct pv_vhost_vsock **out);
/* The device is stopped. The address is given back with the last descriptor of the file. */
void pv_vhost_vsock_free(struct pv_vhost_vsock *vsock);

/* Have the kernel serve both queues. -EBUSY: it does; -EOPNOTSUPP: it lacks a feature that was
 * negotiated; -EINVAL; what the ioctls and pthread_create(3) say; nothing is served then. */
int pv_vhost_vsock_start(struct pv_vhost_vsock *vsock,
                         const struct pv_vhost_vsock_activation *activation);
/* Take the queues back. Connections stay for the host until the guest's next driver is asked about
 * them. Not started: nothing. -ETIMEDOUT: nothing that was handed over may be freed until a later
 * call has returned 0. */
int pv_vhost_vsock_stop(struct pv_vhost_vsock *vsock, uint64_t timeout_ns);
/* As pv_vhost_vsock_stop, for who is to start it again with the same queues: then connections go on.
 * -ETIMEDOUT: all goes on as before. */
int pv_vhost_vsock_drain(struct pv_vhost_vsock *vsock, uint64_t timeout_ns);

#endif
