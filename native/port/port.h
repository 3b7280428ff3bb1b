/* A virtio console device's data path: named ports between the guest and stream sockets of the
 * host (virtio 1.2, 5.3).
 *
 * One thread in C serves all queues of the device and touches no Python. What a driver sends is
 * written to the socket straight from its buffers, and stays in the ring until the socket takes
 * it; what the host sends is read straight into the driver's buffers, while the guest has the port
 * open. The same thread answers the control messages. A ring, a buffer or a message that breaks
 * the rules breaks the device.
 *
 * The host's end of a port is open until everything it said has been read. Meanwhile what it does
 * not take any more is dropped, as is what a driver sends to an end that is not open. The device,
 * its sockets and their ends outlive its activations. */
#ifndef PV_PORT_H
#define PV_PORT_H

#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_PORTS_MAX 31      /* of a device */
#define PV_PORT_NAME_MAX 255 /* bytes */

struct pv_ports;
struct pv_virtio_irq;

/* One port. Descriptors are borrowed until pv_ports_free. */
struct pv_port_config {
	uint32_t number;  /* below PV_PORTS_MAX; each once */
	int fd;           /* a connected stream socket, or -1 */
	int listen_fd;    /* or one that is listened on, non-blocking: one client at a time */
	const char *name; /* copied; "": none */
};

struct pv_port_pair {
	struct pv_queue in;  /* to the driver */
	struct pv_queue out; /* from the driver */
};

/* What the driver has set up; all of it is borrowed until pv_ports_stop, but for the arrays. */
struct pv_ports_activation {
	const struct pv_port_pair *pairs; /* by the number of the port */
	uint32_t count;
	struct pv_port_pair control; /* without rings: MULTIPORT was not negotiated */
	struct pv_virtio_irq *irq;
};

/* Since the device was made, over all ports. */
struct pv_ports_stats {
	uint64_t bytes_in;   /* to the driver */
	uint64_t bytes_out;  /* from the driver */
	uint64_t dropped;    /* bytes from the driver that no host's end took */
	uint64_t opened;     /* host's ends, those that were open at first among them */
	uint64_t closed;     /* of these */
	uint64_t starved;    /* times that the driver had no buffers left */
	uint64_t blocked;    /* times that a socket was full */
	uint64_t messages;   /* control messages of the driver */
	uint64_t kicks;
	uint64_t interrupts; /* rounds that ended with an interrupt */
};

/* -EINVAL: a number or a name that cannot be; -ENOMEM; what eventfd(2) says. */
int pv_ports_new(const struct pv_port_config *configs, uint32_t count, struct pv_ports **out);
/* The device is stopped. */
void pv_ports_free(struct pv_ports *ports);

/* Serve the queues. -EBUSY: started already; -EINVAL: more ports than PV_PORTS_MAX; what
 * pthread_create(3) says; nothing runs then. */
int pv_ports_start(struct pv_ports *ports, const struct pv_ports_activation *activation);
/* End the thread. A buffer that a socket took a part of is lost. Without one: nothing. -ETIMEDOUT:
 * it goes on, and nothing that was handed over may be freed until a later call has returned 0. */
int pv_ports_stop(struct pv_ports *ports, uint64_t timeout_ns);

/* Any thread, at any time. */
void pv_ports_stats(const struct pv_ports *ports, struct pv_ports_stats *stats);

#endif
