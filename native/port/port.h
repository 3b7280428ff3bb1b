/* A virtio console device's data path: consoles and named ports between the guest and sockets,
 * terminals, files and memory of the host (virtio 1.2, 5.3).
 *
 * One thread in C serves all queues of the device and touches no Python. What a driver sends is
 * written to the host's end straight from its buffers, and stays in the ring until that takes
 * it; what the host sends is read straight into the driver's buffers, while the guest has the port
 * open. The same thread answers the control messages. A ring, a buffer or a message that breaks
 * the rules breaks the device.
 *
 * The host's end of a port is open while somebody is there: a socket's peer until everything it
 * said has been read, who has a pty open, and of the rest always somebody. What nobody takes is
 * dropped. A driver waits for what it writes to a console with its locks held, as Linux's does, so
 * what a console's end has not taken for a second is dropped too. The device and the ends of its
 * ports outlive its activations. */
#ifndef PV_PORT_H
#define PV_PORT_H

#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_PORTS_MAX 31      /* of a device */
#define PV_PORT_NAME_MAX 255 /* bytes */

#define PV_PORT_CONSOLE 1 /* a console of the guest */
#define PV_PORT_ESCAPE 2  /* act on keys as PV_CONSOLE_ESCAPE does; a break is Ctrl-O to Linux */

#define PV_PORT_OWED 32 /* see struct pv_port_state */

#define PV_PORT_GUEST 1 /* the guest has it open */
#define PV_PORT_HOST_END 2 /* somebody on the host has */

struct pv_ports;
struct pv_ringbuf;
struct pv_virtio_irq;

/* One port; all of it is borrowed until pv_ports_free, and -1 stands for no descriptor. `in_fd` is
 * where the host's bytes come from, and `out_fd` where the guest's go; both the same of a stream
 * socket, a terminal or the master of a pty, and without either it is an end that takes all and
 * says nothing. `listen_fd`, in their place, is a socket that is listened on, non-blocking: one
 * client at a time. `ringbuf` takes what goes out in place of `out_fd`, which is open all the same.
 * `quit_fd` is an eventfd to which 1 is added when the user asks to quit. */
struct pv_port_config {
	uint32_t number; /* below PV_PORTS_MAX; each once */
	int in_fd;
	int out_fd;
	int listen_fd;
	int quit_fd;
	uint32_t flags;
	struct pv_ringbuf *ringbuf;
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
	struct pv_port_pair control; /* without rings: MULTIPORT was not negotiated, so that port 0,
	                              * a console, is open and what there is */
	struct pv_virtio_irq *irq;
};

/* What a port is to a driver, between two activations that are the same to it. */
struct pv_port_state {
	uint8_t open;   /* in the guest */
	uint8_t ready;  /* the driver takes control messages about it */
	uint8_t there;  /* somebody is at the host's end, as the driver was told, or will be */
	uint16_t columns; /* the same of the terminal's size */
	uint16_t rows;
	uint32_t owed;  /* control messages that are still to be sent: bits below PV_PORT_OWED */
	uint64_t taken; /* bytes of the driver's next buffer that went out already */
};

/* Since the device was made, over all ports. */
struct pv_ports_stats {
	uint64_t bytes_in;   /* to the driver */
	uint64_t bytes_out;  /* from the driver */
	uint64_t dropped;    /* bytes from the driver that no host's end took */
	uint64_t opened;     /* host's ends, those that were open at first among them */
	uint64_t closed;     /* of these */
	uint64_t starved;    /* times that the driver had no buffers left */
	uint64_t blocked;    /* times that a host's end was full */
	uint64_t messages;   /* control messages of the driver */
	uint64_t kicks;
	uint64_t interrupts; /* rounds that ended with an interrupt */
};

/* -EINVAL: a number, a name or ends that cannot be; -EBADF: an end is not open that way; -ENOMEM;
 * what eventfd(2) says. */
int pv_ports_new(const struct pv_port_config *configs, uint32_t count, struct pv_ports **out);
/* The device is stopped. */
void pv_ports_free(struct pv_ports *ports);

/* Serve the queues. -EBUSY: started already; -EINVAL: more ports than PV_PORTS_MAX; what
 * pthread_create(3) says; nothing runs then. */
int pv_ports_start(struct pv_ports *ports, const struct pv_ports_activation *activation);
/* End the thread. A buffer that a host's end took a part of is lost. Without one: nothing. -ETIMEDOUT:
 * it goes on, and nothing that was handed over may be freed until a later call has returned 0. */
int pv_ports_stop(struct pv_ports *ports, uint64_t timeout_ns);

/* As pv_ports_stop, but for what struct pv_port_state tells, with which the next pv_ports_start goes
 * on, if no pv_ports_stop comes before it. Buffers that were not done with are in their queues.
 * -ETIMEDOUT: all goes on as before. */
int pv_ports_drain(struct pv_ports *ports, uint64_t timeout_ns);
/* Of a port below PV_PORTS_MAX, of a device that is drained or stopped. */
void pv_ports_save(const struct pv_ports *ports, uint32_t number, struct pv_port_state *state);
/* Let the next pv_ports_start go on with that, as after pv_ports_drain; the device is stopped.
 * -EINVAL: there is no such port. */
int pv_ports_restore(struct pv_ports *ports, uint32_t number, const struct pv_port_state *state);

/* The terminal of a console may have another size: see. Any thread. */
void pv_ports_look(struct pv_ports *ports);

/* Columns and rows of the terminal behind port 0, 0 where there is none or it has no size; when that
 * changes without MULTIPORT, the irq has news. Any thread. */
void pv_ports_size(const struct pv_ports *ports, uint16_t *columns, uint16_t *rows);

/* PV_PORT_GUEST, PV_PORT_HOST_END, both or 0 of a port below PV_PORTS_MAX. Any thread. */
int pv_ports_open(const struct pv_ports *ports, uint32_t number);

/* Any thread, at any time. */
void pv_ports_stats(const struct pv_ports *ports, struct pv_ports_stats *stats);

#endif
