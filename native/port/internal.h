/* What the parts of the console device share, each of which uses those before it: counters and the
 * end of all (state.c), the host's end of a port (host.c), what is typed there (keys.c), both
 * directions of one (data.c), control messages (control.c), the thread (thread.c), and the device's
 * life (port.c). */
#ifndef PV_PORT_INTERNAL_H
#define PV_PORT_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "port/port.h"
#include "stream_internal.h"
#include "thread_internal.h"
#include "virtio/virtqueue.h"

/* In the order of struct pv_ports_stats. */
enum pv_port_counter {
	PV_PORT_BYTES_IN,
	PV_PORT_BYTES_OUT,
	PV_PORT_DROPPED,
	PV_PORT_OPENED,
	PV_PORT_CLOSED,
	PV_PORT_STARVED,
	PV_PORT_BLOCKED,
	PV_PORT_MESSAGES,
	PV_PORT_KICKS,
	PV_PORT_INTERRUPTS,
	PV_PORT_COUNTERS,
};

/* What a direction waits for when it does nothing. */
enum pv_port_wait {
	PV_PORT_MORE, /* nothing: it has more to do */
	PV_PORT_KICK, /* the driver */
	PV_PORT_HOST, /* the host's end */
	PV_PORT_NAP,  /* the driver, for a moment, without asking for a kick */
	PV_PORT_IDLE, /* that the port is opened, or has a queue */
};

/* Control messages that a port owes the driver, in the order in which they are sent: one of each
 * kind at most, so that a driver that takes none costs nothing. */
enum pv_port_owed {
	PV_PORT_OWES_ADD = 1,
	PV_PORT_OWES_CONSOLE = 2,
	PV_PORT_OWES_NAME = 4,
	PV_PORT_OWES_SIZE = 8,  /* of the terminal, at the moment of sending */
	PV_PORT_OWES_OPEN = 16, /* whether the host's end is, at the moment of sending */
	PV_PORT_OWES_ALL = 31,
};

/* Used by the thread alone while that runs, but for what is atomic. */
struct pv_port {
	/* The host's end; outlives activations. */
	int listen_fd; /* -1: none */
	int size_fd;   /* of the terminal whose size is the console's; -1: none */
	int quit_fd;
	uint32_t flags;
	struct pv_stream in;
	struct pv_stream out;
	bool exists;
	bool socket;      /* both are a stream socket */
	bool hung_up;     /* the peer says nothing any more; something of it may be left */
	bool escape_held; /* a Ctrl-A came last */
	bool impatient;   /* a console's end took nothing for too long: drop what it does not take */
	uint64_t blocked_at; /* when it took the last; 0: it takes all */
	uint64_t look_at;    /* when to look at what cannot be waited for; 0: never */
	char name[PV_PORT_NAME_MAX + 1];
	atomic_bool there;     /* somebody is at the host's end */
	_Atomic uint32_t size; /* columns, and rows above them */

	/* From start to stop. */
	struct pv_port_pair queues;
	enum pv_port_wait in_wait;
	enum pv_port_wait out_wait;
	atomic_bool open; /* in the guest */
	bool ready;       /* the driver takes messages about it */
	bool flows;       /* something was read since the driver had no buffers */
	uint32_t owed;    /* PV_PORT_OWES_... */
	uint64_t taken;   /* bytes of the next buffer of `out` that the host's end took */
};

#define PV_PORT_SEGMENTS 1024 /* IOV_MAX: of one system call */
#define PV_PORT_CHAINS 16     /* in one */
#define PV_PORT_BATCH (1 << 20) /* bytes in one */

/* Buffers popped together, to be moved by one system call. */
struct pv_port_batch {
	uint32_t chains;
	uint32_t segments;
	uint32_t completed; /* of the chains, the first ones */
	uint64_t bytes;     /* of the segments, which may hold less than the chains */
	struct {
		uint16_t head;
		uint64_t end; /* where it ends, counted from the first byte of the first */
	} chain[PV_PORT_CHAINS];
	struct iovec iov[PV_PORT_SEGMENTS];
};

struct pv_ports {
	struct pv_port port[PV_PORTS_MAX];
	int wake_fd;

	/* From start to stop. */
	bool running;
	struct pv_thread thread;
	uint32_t count; /* of the ports that the driver knows */
	struct pv_port_pair control;
	struct pv_virtio_irq *irq;
	enum pv_port_wait control_in_wait;
	enum pv_port_wait control_out_wait;
	bool notify;  /* the driver asked for an interrupt, this round */
	bool refused; /* a client could not be accepted; to be tried again */
	bool broken;
	bool keeps; /* what the ports are to the driver stays as it is with the next start */
	atomic_bool look; /* at the sizes of terminals */
	struct pv_chain chain; /* while it is looked at */
	struct pv_port_batch batch;

	_Atomic uint64_t counters[PV_PORT_COUNTERS];
};

void pv_port_count(struct pv_ports *ports, enum pv_port_counter counter, uint64_t more);
/* Break the device; what it says is copied. */
void pv_port_break(struct pv_ports *ports, const char *why);

/* One direction of a port, for a while; its `wait` says what for, then. */
void pv_port_receive(struct pv_ports *ports, struct pv_port *port);
void pv_port_send(struct pv_ports *ports, struct pv_port *port);

/* Open what a port is configured with; 0 or -errno. */
int pv_port_open_host(struct pv_ports *ports, struct pv_port *port,
                      const struct pv_port_config *config);
void pv_port_close_host(struct pv_port *port);
/* Read what is typed into the batch, and carry out the keys that are ours; as pv_stream_readv. */
int64_t pv_port_read_keys(struct pv_port *port, const struct pv_port_batch *batch);

/* Take the next client, if there is one. */
void pv_port_accept(struct pv_ports *ports, struct pv_port *port);
/* The host's end said its last: it is closed, but who still takes something stays. */
void pv_port_hang_up(struct pv_ports *ports, struct pv_port *port);
/* Nobody has the pty open. */
void pv_port_leave(struct pv_ports *ports, struct pv_port *port);
/* A socket's peer closed its end: see whether it left anything. */
void pv_port_peer_closed(struct pv_ports *ports, struct pv_port *port);
/* The time that `look_at` names has come. */
void pv_port_look(struct pv_ports *ports, struct pv_port *port);
/* See whether the terminal of a console has another size. */
void pv_port_see_size(struct pv_ports *ports, struct pv_port *port);

/* Take messages of the driver, for a while. */
void pv_port_take_messages(struct pv_ports *ports);
/* Send what is owed, as far as the driver has buffers. */
void pv_port_send_messages(struct pv_ports *ports);

/* As a driver finds it that makes its device ready: nothing is open or owed. */
void pv_ports_begin(struct pv_ports *ports, const struct pv_ports_activation *activation);
/* Do what there is to do on a device that is not broken, up to the budgets. */
void pv_port_serve(struct pv_ports *ports);
/* The thread. */
void *pv_port_run(void *ports);

/* Show the driver what was pushed. */
void pv_port_publish(struct pv_ports *ports, struct pv_virtqueue *ring);

#endif
