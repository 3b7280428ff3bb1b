/* What the parts of the socket device share, each of which uses those before it: counters and the
 * end of all (state.c), the table of connections (table.c), what epoll(7) tells of (watch.c),
 * packets to the driver (packet.c), the end of a connection (close.c), bytes from the driver
 * (data.c), the beginning of one (host.c), both directions (tx.c, rx.c), the thread (thread.c), and
 * the device's life (vsock.c). */
#ifndef PV_VSOCK_INTERNAL_H
#define PV_VSOCK_INTERNAL_H

#include <linux/virtio_vsock.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "thread_internal.h"
#include "virtio/fault_internal.h"
#include "virtio/virtqueue.h"
#include "vsock/vsock.h"

#define PV_VSOCK_HOST 2 /* VMADDR_CID_HOST */
#define PV_VSOCK_HEADER 44

_Static_assert(sizeof(struct virtio_vsock_hdr) == PV_VSOCK_HEADER, "layout");

/* What the driver may send on a connection before it is forwarded: of LARGE connections so much, of
 * further ones less, as memory has a bound. */
#define PV_VSOCK_LARGE 256
#define PV_VSOCK_CREDIT_LARGE (256 * 1024)
#define PV_VSOCK_CREDIT_SMALL (16 * 1024)

#define PV_VSOCK_BUCKETS 4096
#define PV_VSOCK_REPLIES 256   /* RSTs for what is no connection, that wait for buffers */
#define PV_VSOCK_GREETERS 256  /* clients that have not said yet where they want to */
#define PV_VSOCK_LINE_MAX 32   /* of what they say */

#define PV_VSOCK_S UINT64_C(1000000000)
#define PV_VSOCK_GREETING_NS (30 * PV_VSOCK_S) /* for a client to say where it wants to */
#define PV_VSOCK_REQUEST_NS (5 * PV_VSOCK_S)   /* for the guest to answer */
#define PV_VSOCK_KNOCK_NS (2 * PV_VSOCK_S)     /* for a server of the host that is busy */
#define PV_VSOCK_STALL_NS PV_VSOCK_S           /* without credit, until it is asked for */
#define PV_VSOCK_CLOSING_NS (8 * PV_VSOCK_S)   /* for the guest to agree, as in Linux */

/* In the order of struct pv_vsock_stats. */
enum pv_vsock_counter {
	PV_VSOCK_OF_HOST,
	PV_VSOCK_OF_GUEST,
	PV_VSOCK_ENDED,
	PV_VSOCK_REFUSED,
	PV_VSOCK_BYTES_IN,
	PV_VSOCK_BYTES_OUT,
	PV_VSOCK_DROPPED,
	PV_VSOCK_STALLS,
	PV_VSOCK_STARVED,
	PV_VSOCK_BLOCKED,
	PV_VSOCK_MALFORMED,
	PV_VSOCK_RESETS,
	PV_VSOCK_PACKETS_IN,
	PV_VSOCK_PACKETS_OUT,
	PV_VSOCK_KICKS,
	PV_VSOCK_INTERRUPTS,
	PV_VSOCK_COUNTERS,
};

enum pv_vsock_state {
	PV_VSOCK_FREE,
	PV_VSOCK_GREETING,  /* a client has not said where it wants to */
	PV_VSOCK_REQUESTED, /* the driver is to answer a client */
	PV_VSOCK_KNOCKING,  /* the guest waits for a server of the host that is busy */
	PV_VSOCK_OPEN,
	PV_VSOCK_CLOSING,  /* the socket is closed; the driver is to be told, or to agree */
	PV_VSOCK_DRAINING, /* the guest is done with it; the socket takes what is left */
};

/* Packets that a connection owes the driver, in the order in which they are sent: one of each kind
 * at most, so that a driver without buffers costs nothing. */
enum pv_vsock_owed {
	PV_VSOCK_OWES_REQUEST = 1,
	PV_VSOCK_OWES_RESPONSE = 2,
	PV_VSOCK_OWES_UPDATE = 4, /* of the credit */
	PV_VSOCK_OWES_ASKING = 8, /* for the driver's */
	PV_VSOCK_OWES_SHUTDOWN = 16,
	PV_VSOCK_OWES_RST = 32,
};

struct pv_vsock_conn {
	enum pv_vsock_state state;
	int fd; /* owned; -1: closed */
	uint32_t guest_port;
	uint32_t host_port;
	bool named;    /* in the table, by its ports */
	bool queued;   /* for its turn; may outlive the connection */
	uint8_t owed;  /* PV_VSOCK_OWES_... */
	struct pv_vsock_conn *next_free;
	struct pv_vsock_conn *next_named;
	struct pv_vsock_conn *next_queued;
	uint64_t deadline; /* 0: none */

	/* The socket; epoll(7) tells of edges. */
	bool readable;
	bool ending;     /* the peer will say nothing more, or is gone: read to the end */
	bool gone;       /* the peer is */
	bool heard_out;  /* the end was read */
	bool deaf;       /* the peer takes nothing any more */
	bool write_shut; /* its end was passed on */
	bool watched;
	bool waits_out;  /* EPOLLOUT is asked for */

	uint8_t guest_shut; /* VIRTIO_VSOCK_SHUTDOWN_..., as the guest said, */
	uint8_t host_shut;  /* and as it was or will be told */

	/* To the driver: modulo 2^32. */
	uint32_t sent;
	uint32_t peer_room;
	uint32_t peer_forwarded;
	bool stalled;
	uint32_t chains; /* buffers to take for what the socket has; 0: as many as there may be */

	/* From the driver. */
	uint32_t room;
	uint32_t received;
	uint32_t forwarded;
	uint32_t told; /* of `forwarded` */
	uint8_t *data; /* a ring of `room` bytes */
	bool keeps;    /* it has been written to */
	uint32_t start;
	uint32_t held;
};

enum pv_vsock_wait {
	PV_VSOCK_MORE, /* nothing: there may be more */
	PV_VSOCK_KICK, /* the driver */
	PV_VSOCK_FULL, /* that the replies get away */
	PV_VSOCK_IDLE, /* nothing will come */
};

#define PV_VSOCK_SEGMENTS 1024 /* IOV_MAX: of one system call */
#define PV_VSOCK_CHAINS 32     /* receive buffers in one */
#define PV_VSOCK_BATCH (128 * 1024) /* bytes in one */

/* Receive buffers popped together, to be filled by one system call. */
struct pv_vsock_batch {
	uint32_t chains;
	uint32_t segments;
	uint32_t data_segments;
	uint64_t bytes; /* of data */
	struct {
		uint16_t head;
		uint16_t count; /* of segments */
		uint32_t first;
		uint32_t bytes; /* of data that it takes */
	} chain[PV_VSOCK_CHAINS];
	struct iovec iov[PV_VSOCK_SEGMENTS];  /* whole buffers */
	struct iovec data[PV_VSOCK_SEGMENTS]; /* without the headers */
};

/* Of connections; those that are not LARGE by the connections' numbers. */
struct pv_vsock_rings {
	uint8_t *large; /* NULL: there are none yet */
	uint8_t *small;
	size_t bytes; /* of all */
	uint32_t free_count;
	uint16_t free[PV_VSOCK_LARGE]; /* large ones, by their numbers */
};

struct pv_vsock {
	uint64_t guest_cid;
	int listen_fd;
	int wake_fd;
	uint32_t limit; /* of connections */
	char path[PV_VSOCK_PATH_MAX + 1];

	/* From start to stop; the thread's alone while that runs. */
	bool running;
	bool paused; /* and has no thread meanwhile */
	struct pv_thread thread;
	int epoll_fd;
	struct pv_queue rx, tx;
	struct pv_virtio_irq *irq;
	struct pv_faults *faults;
	enum pv_vsock_wait rx_wait, tx_wait;
	bool notify;         /* the driver asked for an interrupt, this round */
	bool clients;        /* more may wait to be accepted */
	uint64_t retry_at;   /* when a client is accepted again; 0: now */
	bool broken;
	uint32_t next_port; /* of the host, for clients */
	uint32_t greeters;
	uint32_t knockers;
	uint32_t timed;     /* connections with a deadline */
	uint64_t looked_at; /* when the deadlines were looked at last */

	/* The table: all connections, those that are free, those with ports by these. */
	struct pv_vsock_conn *conns;
	uint32_t used; /* entries that were ever in use */
	struct pv_vsock_conn *free;
	struct pv_vsock_conn *named[PV_VSOCK_BUCKETS];
	struct pv_vsock_rings rings;
	struct pv_vsock_conn *queue_head, *queue_tail;

	struct virtio_vsock_hdr replies[PV_VSOCK_REPLIES];
	uint32_t reply_first, reply_count;

	struct pv_chain chain; /* while it is looked at */
	struct pv_vsock_batch batch;
	struct iovec iov[PV_VSOCK_SEGMENTS];

	_Atomic uint64_t counters[PV_VSOCK_COUNTERS];
};

void pv_vsock_count(struct pv_vsock *vsock, enum pv_vsock_counter counter, uint64_t more);
/* Break the device; what it says is copied. */
void pv_vsock_break(struct pv_vsock *vsock, const char *why);
/* Whether a fault loses this packet; `op` is PV_FAULT_RX or PV_FAULT_TX. */
bool pv_vsock_is_lost(struct pv_vsock *vsock, uint32_t op);
/* Show the driver what was pushed. */
void pv_vsock_publish(struct pv_vsock *vsock, struct pv_virtqueue *ring);

/* A new connection in this state, without ports or a descriptor; NULL: there is no room. */
struct pv_vsock_conn *pv_vsock_take(struct pv_vsock *vsock, enum pv_vsock_state state);
/* Whether there is room for one. */
bool pv_vsock_has_room(const struct pv_vsock *vsock);
/* Give it up, with its socket and all that it owes. */
void pv_vsock_drop(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
void pv_vsock_enter(struct pv_vsock *vsock, struct pv_vsock_conn *conn, enum pv_vsock_state state);
/* Let it be found by its ports, or no more. */
void pv_vsock_name(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t guest_port,
                   uint32_t host_port);
void pv_vsock_unname(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
struct pv_vsock_conn *pv_vsock_find(struct pv_vsock *vsock, uint32_t guest_port,
                                    uint32_t host_port);
/* 0: none. */
void pv_vsock_set_deadline(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint64_t span_ns);
/* Have it looked at for something to send to the driver. */
void pv_vsock_enqueue(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
/* The next one whose turn it is; NULL: none. */
struct pv_vsock_conn *pv_vsock_dequeue(struct pv_vsock *vsock);
void pv_vsock_drop_all(struct pv_vsock *vsock);

/* Set the rings of all connections aside. -errno of mmap(2). */
int pv_vsock_make_rings(struct pv_vsock *vsock);
void pv_vsock_free_rings(struct pv_vsock *vsock);
/* Give a connection that begins its `room` and `data`; and have them back. */
void pv_vsock_take_ring(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
void pv_vsock_give_ring_back(struct pv_vsock *vsock, struct pv_vsock_conn *conn);

/* Places in what epoll(7) tells. */
enum { PV_VSOCK_ON_WAKE, PV_VSOCK_ON_RX, PV_VSOCK_ON_TX, PV_VSOCK_ON_CLIENTS, PV_VSOCK_ON_CONN };

/* Have epoll(7) tell of edges on `fd`. 0, or -errno. */
int pv_vsock_watch_fd(struct pv_vsock *vsock, int fd, uint64_t place);
/* The same for the connection's socket: also of room, if something is held. False: it cannot. */
bool pv_vsock_watch(struct pv_vsock *vsock, struct pv_vsock_conn *conn);

/* A packet of the connection's. */
struct virtio_vsock_hdr pv_vsock_compose(struct pv_vsock *vsock, struct pv_vsock_conn *conn,
                                         uint16_t op, uint32_t length);
/* Send one without data. False: the driver has no buffer for it, or the device is broken. */
bool pv_vsock_send_header(struct pv_vsock *vsock, const struct virtio_vsock_hdr *header);
/* Take a receive buffer. 1, 0: there is none; -1: the device is broken. */
int pv_vsock_take_buffer(struct pv_vsock *vsock);
/* Have an RST sent in answer to a packet that is not one. There is room for it. */
void pv_vsock_reply_rst(struct pv_vsock *vsock, const struct virtio_vsock_hdr *header);
/* False: some are left. */
bool pv_vsock_send_replies(struct pv_vsock *vsock);
/* What the driver takes on a connection now. */
uint32_t pv_vsock_credit(const struct pv_vsock_conn *conn);

/* End a connection at once: the driver is told by an RST, unless it knows nothing of it. */
void pv_vsock_abort(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
/* The driver has ended it. */
void pv_vsock_on_rst(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
/* Tell the driver that the host neither sends (SHUTDOWN_SEND) nor takes (_RCV) any more. */
void pv_vsock_host_shuts(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint8_t flags);
/* The driver was told so: if both, it is to agree. */
void pv_vsock_host_has_shut(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
/* Do what follows from what the guest has shut, and from nothing being held. */
void pv_vsock_settle(struct pv_vsock *vsock, struct pv_vsock_conn *conn);

/* Write `length` bytes behind the header of `vsock->chain` to the socket, or keep them. */
void pv_vsock_deliver(struct pv_vsock *vsock, struct pv_vsock_conn *conn, uint32_t length);
/* Write what is kept. */
void pv_vsock_flush(struct pv_vsock *vsock, struct pv_vsock_conn *conn);

/* Take clients that wait, some of them. */
void pv_vsock_accept(struct pv_vsock *vsock);
/* See whether a client has said where it wants to. */
void pv_vsock_greet(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
/* The guest wants to connect. */
void pv_vsock_on_request(struct pv_vsock *vsock, const struct virtio_vsock_hdr *header);
/* The guest has accepted a client. */
void pv_vsock_on_response(struct pv_vsock *vsock, struct pv_vsock_conn *conn);
/* Try again to reach a server of the host. */
void pv_vsock_knock(struct pv_vsock *vsock, struct pv_vsock_conn *conn);

/* Take packets of the driver, for a while. */
void pv_vsock_take_packets(struct pv_vsock *vsock);
/* Send what there is, for a while. */
void pv_vsock_send_packets(struct pv_vsock *vsock);

/* As a driver finds it that makes its device ready. 0, or what epoll(7) says. */
int pv_vsock_begin(struct pv_vsock *vsock, const struct pv_vsock_activation *activation);
void pv_vsock_end(struct pv_vsock *vsock);
/* Do what there is to do on a device that is not broken, up to the budgets. */
void pv_vsock_serve(struct pv_vsock *vsock);
/* Wait for something to do, but not beyond `timeout_ms`, -1: without a limit of the caller's. */
void pv_vsock_wait(struct pv_vsock *vsock, int timeout_ms);
/* The thread. */
void *pv_vsock_run(void *vsock);

#endif
