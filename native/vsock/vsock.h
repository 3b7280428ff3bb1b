/* A socket device's data path: connections between processes of the guest and Unix sockets of the
 * host (virtio 1.2, 5.10), without the host's kernel taking part.
 *
 * One thread in C serves all queues and all connections, and touches no Python. What the driver
 * sends is written to the socket straight from its buffers, and kept here only as far as the
 * socket does not take it, which is bounded by the credit that the driver was given; what the host
 * sends is read straight into the driver's buffers, as far as the driver gave credit. Connections
 * have their turns one after the other, so one that is slow keeps none.
 *
 * A client of the host connects to the socket that is listened on, says "CONNECT PORT\n" and reads
 * "OK PORT\n" once the guest has accepted. A connection of the guest's to port P of the host is
 * one to the Unix socket PATH_P. This is what Firecracker does.
 *
 * A ring or a packet that breaks the rules of the ring breaks the device; what breaks those of a
 * connection ends that. Connections end with the activation that they began in. */
#ifndef PV_VSOCK_H
#define PV_VSOCK_H

#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_VSOCK_CONNECTIONS 4096 /* of a device */
#define PV_VSOCK_PATH_MAX 96      /* bytes, so that PATH_4294967295 is a socket's name as well */

struct pv_vsock;
struct pv_virtio_irq;

struct pv_vsock_config {
	uint64_t guest_cid;
	int listen_fd;        /* non-blocking; borrowed until pv_vsock_free */
	const char *path;     /* copied */
	uint32_t connections; /* at once, to PV_VSOCK_CONNECTIONS, each a descriptor */
};

/* What the driver has set up, borrowed until pv_vsock_stop. */
struct pv_vsock_activation {
	struct pv_queue rx; /* to the driver */
	struct pv_queue tx; /* from the driver */
	struct pv_virtio_irq *irq;
};

/* Since the device was made, over all connections. */
struct pv_vsock_stats {
	uint64_t of_host;    /* connections that a client of the host began, and the guest accepted */
	uint64_t of_guest;   /* that the guest began, and somebody of the host listened for */
	uint64_t ended;      /* of both */
	uint64_t refused;    /* that did not come about: nobody listens, no room, no answer */
	uint64_t bytes_in;   /* to the driver */
	uint64_t bytes_out;  /* from the driver */
	uint64_t dropped;    /* bytes from the driver that no socket took */
	uint64_t stalls;     /* times that the driver's credit was used up */
	uint64_t starved;    /* times that the driver had no buffers left */
	uint64_t blocked;    /* times that a socket was full */
	uint64_t malformed;  /* packets that broke a rule of the protocol */
	uint64_t resets;     /* RST packets sent */
	uint64_t packets_in; /* to the driver */
	uint64_t packets_out;
	uint64_t kicks;
	uint64_t interrupts; /* rounds that ended with an interrupt */
};

/* -EINVAL: a path or a number that cannot be; -ENOMEM; what epoll_create(2) and eventfd(2) say. */
int pv_vsock_new(const struct pv_vsock_config *config, struct pv_vsock **out);
/* The device is stopped. */
void pv_vsock_free(struct pv_vsock *vsock);

/* Serve the queues. -EBUSY: started already; what epoll_ctl(2) and pthread_create(3) say; nothing
 * runs then. */
int pv_vsock_start(struct pv_vsock *vsock, const struct pv_vsock_activation *activation);
/* End the thread and all connections. Without one: nothing. -ETIMEDOUT: it goes on, and nothing
 * that was handed over may be freed until a later call has returned 0. */
int pv_vsock_stop(struct pv_vsock *vsock, uint64_t timeout_ns);

/* End the thread, and leave the connections as they are: for who is to call pv_vsock_resume or
 * pv_vsock_stop. -ETIMEDOUT: all goes on as before. */
int pv_vsock_drain(struct pv_vsock *vsock, uint64_t timeout_ns);
/* Start another; what pthread_create(3) says. */
int pv_vsock_resume(struct pv_vsock *vsock);

/* Tell the driver that its connections are no more, and that its address may be another one
 * (5.10.6.7), through the event queue, which nobody serves meanwhile. 1: it is told; 0: it has no
 * buffer there; -EPROTO: the device is broken; -ENOMEM. */
int pv_vsock_tell_reset(const struct pv_queue *event, struct pv_virtio_irq *irq);

/* Any thread, at any time. */
void pv_vsock_stats(const struct pv_vsock *vsock, struct pv_vsock_stats *stats);

#endif
