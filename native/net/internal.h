/* What the parts of the network device share, each of which uses those before it: the ports to the
 * host (tap.c, stream.c), limits (limit.c), what the driver wants to receive (mode.c), counters and
 * flags (state.c), both directions (rx.c, tx.c), the control queue (ctrl.c), a turn of all that
 * (worker.c) on threads of their own (thread.c) or a shared one (member.c), vhost (vhost.c) and the
 * device's life (net.c). */
#ifndef PV_NET_INTERNAL_H
#define PV_NET_INTERNAL_H

#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "iothread/internal.h"
#include "net/net.h"
#include "thread_internal.h"
#include "throttle_internal.h"
#include "virtio/fault_internal.h"
#include "virtio/virtqueue.h"

/* Newer than the headers of some distributions. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef VIRTIO_NET_F_HOST_USO
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO 56
#endif
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

#define PV_HAS(features, bit) (((features) >> (bit)&1) != 0)

/* Of a packet, one less than IOV_MAX. */
#define PV_NET_SEGMENTS 1023

_Static_assert(sizeof(struct virtio_net_hdr_v1) == PV_NET_HEADER, "layout");

/* A queue of the host's side. Used by one thread at a time. */
struct pv_net_port {
	const struct pv_net_port_ops *ops;
	int fd; /* pollable; borrowed */
	bool attached;             /* a tap's queue that takes part in the spreading of packets */
	struct pv_net_stream *own; /* what a stream keeps */
};

struct pv_net_port_ops {
	/* Read one packet, a header before it, into segments that hold PV_NET_FRAME_MAX bytes and the
	 * header: the bytes of both. -EAGAIN: there is none now; -EPIPE: there will never be one;
	 * another -errno: one was lost. Num_buffers in the header is not written. */
	ssize_t (*receive)(struct pv_net_port *port, const struct iovec *iov, int count);
	/* Send a packet; the first segment is its header. -EAGAIN: the host's queue is full; -EPIPE:
	 * it will never take one; another -errno: it was dropped. */
	int (*send)(struct pv_net_port *port, const struct iovec *iov, int count);
	/* Go on with what `send` took; as there, -EAGAIN when something is left. NULL: nothing ever. */
	int (*flush)(struct pv_net_port *port);
	void (*close)(struct pv_net_port *port);
	/* It may have read more packets than it has handed out, of which poll(2) says nothing. */
	bool reads_ahead;
};

/* -ENOMEM, or what fcntl(2) says. `tap` alone has more than one queue. */
void pv_net_tap_open(struct pv_net_port *port, int fd);
int pv_net_stream_open(struct pv_net_port *port, int fd);

/* Have the tap hand over packets with these offloads (TUN_F_...) and no others. */
void pv_net_tap_set_offloads(struct pv_net_port *port, uint32_t offloads);
/* Have the tap spread packets over the first `pairs` of its `count` queues. What the ioctl says. */
int pv_net_tap_spread(struct pv_net_port *ports, uint32_t count, uint32_t pairs);

/* The bytes of a frame that tell whether it is for the driver. */
#define PV_NET_PEEK 18

/* As after a reset, with the offloads that were negotiated. */
void pv_net_mode_init(struct pv_net_mode *mode, const uint8_t mac[6], uint64_t features);
/* The TUN_F_... bits of GUEST_... features; what needs another bit goes without it. */
uint32_t pv_net_offloads(uint64_t features);
/* Whether the frame that begins like this is for the driver. */
bool pv_net_mode_wants(const struct pv_net_mode *mode, const uint8_t frame[PV_NET_PEEK]);
/* Whether the driver takes a packet with this header. */
bool pv_net_mode_fits(const struct pv_net_mode *mode, const struct virtio_net_hdr_v1 *header);

/* Serve the commands of 5.1.6.5 that a chain holds; false: the chain cannot even be answered. The
 * mode's lock is not held. */
struct pv_net_worker;
bool pv_net_command(struct pv_net *net, const struct pv_chain *chain);

/* Two token buckets; a packet may overdraw them. */
struct pv_net_limit {
	struct pv_throttle packets;
	struct pv_throttle bytes;
	bool limited;
};

void pv_net_limit_init(struct pv_net_limit *limit, uint64_t packets, uint64_t bytes);
/* Nanoseconds until a packet may pass. */
uint64_t pv_net_limit_delay(struct pv_net_limit *limit);
void pv_net_limit_charge(struct pv_net_limit *limit, uint64_t bytes);

/* In the order of struct pv_net_stats. */
enum pv_net_counter {
	PV_RX_PACKETS,
	PV_RX_BYTES,
	PV_RX_FILTERED,
	PV_RX_NO_LINK,
	PV_RX_NO_ROOM,
	PV_RX_UNFIT,
	PV_RX_ERRORS,
	PV_RX_STARVED,
	PV_RX_THROTTLED,
	PV_TX_PACKETS,
	PV_TX_BYTES,
	PV_TX_MALFORMED,
	PV_TX_NO_LINK,
	PV_TX_ERRORS,
	PV_TX_BLOCKED,
	PV_TX_THROTTLED,
	PV_COMMANDS,
	PV_KICKS,
	PV_INTERRUPTS,
	PV_SUPPRESSED,
	PV_NET_COUNTERS,
};

/* What a direction waits for when it does nothing. */
enum pv_net_wait {
	PV_WAIT_NONE, /* it has more to do */
	PV_WAIT_KICK, /* buffers or packets of the driver */
	PV_WAIT_PORT, /* the host */
	PV_WAIT_TIME, /* its limit */
	PV_WAIT_GONE, /* nothing: it is over */
};

/* Receive buffers, taken from the ring ahead of the packets, in the order of the ring. */
struct pv_net_stock {
	uint32_t first_buffer, buffer_count;
	uint32_t first_segment, segment_count;
	uint64_t bytes;
	struct pv_net_buffer {
		uint16_t head;
		uint16_t segments;
		uint32_t bytes;
	} buffers[2 * PV_NET_SEGMENTS];
	struct iovec iov[2 * PV_NET_SEGMENTS + 1]; /* one more for the spill */
};

struct pv_net_rx {
	struct pv_queue queue;
	enum pv_net_wait wait;
	uint64_t delay_ns;
	uint32_t large;   /* how large the stock is to be */
	uint32_t smaller; /* packets in a row for which a smaller one would do */
	uint32_t alone;   /* packets that came one by one, in a row */
	size_t held;    /* bytes of a packet that waits for buffers; 0: there is none */
	size_t held_in; /* how many of them are in the stock, the others in the spill */
	struct pv_net_stock stock;
	uint8_t spill[PV_NET_HEADER + PV_NET_FRAME_MAX];
};

struct pv_net_tx {
	struct pv_queue queue;
	enum pv_net_wait wait;
	uint64_t delay_ns;
	bool held; /* `chain` waits */
	struct pv_chain chain;
	struct virtio_net_hdr_v1 header; /* a private copy; what is sent */
	struct iovec iov[PV_NET_SEGMENTS + 1];
	uint32_t count;
	uint64_t bytes;
};

/* What ends the wait of a shared thread. */
enum pv_net_watch {
	PV_NET_WAKE,
	PV_NET_RX,
	PV_NET_TX,
	PV_NET_CTRL,
	PV_NET_READABLE, /* the port */
	PV_NET_WRITABLE, /* the same, by a descriptor of our own: epoll(7) takes one once */
	PV_NET_WATCHES,
};

/* What serves a pair of queues; its thread's alone while that runs, the counters apart. */
struct pv_net_worker {
	struct pv_member member; /* first, so that one is found by the other */
	struct pv_watch watches[PV_NET_WATCHES];
	struct pv_iothread *shared; /* while it runs there */
	bool more;                  /* to do, when it was looked at last */
	struct pv_net *net;
	uint32_t index;
	bool running;
	struct pv_thread thread;
	int epoll_fd;       /* of that thread, if it is its own */
	uint32_t unwatched; /* places of it that are not watched any more */
	uint32_t asked;     /* of the port */
	int wake_fd;
	struct pv_net_port *port; /* without ops: none */
	bool lost;                /* the port is of no use any more */
	bool flushing;            /* the port has not sent all it took */
	bool pushed;              /* something, since the last publish */
	uint32_t armed;           /* pv_faults_armed, as of this batch */
	uint32_t mode_version;    /* of the copy */
	struct pv_net_mode mode;
	_Atomic uint64_t *counters;
	struct pv_net_rx rx;
	struct pv_net_tx tx;
	struct pv_chain chain; /* of the receive or the control queue, while it is looked at */
};

struct pv_net {
	struct pv_net_config config;
	struct pv_net_limit rx_limit;
	struct pv_net_limit tx_limit;
	atomic_bool link;
	atomic_bool lost; /* the backend */
	atomic_bool news; /* that it is; until pv_net_take_lost */
	atomic_bool filter_told; /* that the mode changed; until pv_net_read_mode */
	atomic_bool filter_news; /* the same; until pv_net_take_filter_change */

	/* The backend. */
	struct pv_net_port ports[PV_NET_PAIRS];
	uint32_t port_count; /* 0: there is none */
	int vhost_fds[PV_NET_PAIRS];
	bool has_vhost;
	bool lent; /* the pairs are another process's */
	struct pv_iothread *iothread;

	/* From start to stop. */
	uint64_t features;
	struct pv_net_worker *workers[PV_NET_PAIRS];
	uint32_t count;
	_Atomic uint32_t active; /* pairs in use */
	struct pv_queue ctrl;
	struct pv_virtio_irq *irq;
	struct pv_faults *faults;
	const struct pv_memory *memory;
	bool vhost;         /* the kernel serves the pairs now, the first thread all else */
	int vhost_error_fd; /* an eventfd, while it does, and until pv_net_vhost_end; -1 */
	bool restored; /* the mode and the pairs in use are to stay as they are */
	atomic_bool broken;
	atomic_bool announcing;         /* the driver's configuration asks it to */
	atomic_bool flapping;           /* the driver sees no link until `announce_at` */
	atomic_bool announcement;       /* news of either; until pv_net_take_announcement */
	_Atomic uint32_t announcements; /* that are still to come, */
	_Atomic uint64_t announce_at;   /* the next one then, by pv_now_ns */

	pthread_mutex_t lock; /* of the mode */
	_Atomic uint32_t mode_version;
	struct pv_net_mode mode;

	_Atomic uint64_t counters[PV_NET_PAIRS][PV_NET_COUNTERS];
};

/* Whether somebody else serves the pairs now. */
static inline bool pv_net_is_away(const struct pv_net *net)
{
	return net->vhost || net->lent;
}

void pv_net_count(struct pv_net_worker *w, enum pv_net_counter counter, uint64_t more);
/* Whether a fault loses this packet; `op` is PV_FAULT_RX or PV_FAULT_TX. */
bool pv_net_is_lost(struct pv_net_worker *w, uint32_t op);
/* Break the device, once. */
void pv_net_break(struct pv_net *net, const char *why);
/* The host's side is gone. */
void pv_net_lose(struct pv_net_worker *w);
/* Have every thread look whether something has changed. */
void pv_net_wake(struct pv_net *net);
/* Use the first `count` pairs. -EINVAL: there are not so many. */
int pv_net_use_pairs(struct pv_net *net, uint32_t count);

/* Ask the driver to announce itself, or show it the link again, if it is time; how long that is, UINT64_MAX: for ever. The first
 * thread's. */
void pv_net_ask_to_announce(struct pv_net *net);
uint64_t pv_net_announcement_delay(const struct pv_net *net);
/* The driver has. -EINVAL: it has not agreed to be asked. */
int pv_net_acknowledge(struct pv_net *net);
/* None is to come any more. */
void pv_net_end_announcements(struct pv_net *net);

/* One direction, for a while. The directions' `wait` says what for, then. */
void pv_net_receive(struct pv_net_worker *w);
void pv_net_send(struct pv_net_worker *w);

/* Do what there is to do, up to the budgets; false: there is no more. */
bool pv_net_pass(struct pv_net_worker *w, bool has_polled);
/* Take what poll(2) says of the port. */
void pv_net_look_at_port(struct pv_net_worker *w, short events);
/* Nanoseconds until one of the limits allows for more, or it is time for something. */
uint64_t pv_net_delay(const struct pv_net_worker *w);
/* Have a thread of its own. What epoll_create(2), epoll_ctl(2) and pthread_create(3) say. */
int pv_net_run(struct pv_net_worker *w);
/* No more, once it was asked to end. -ETIMEDOUT: it goes on; ask again. */
int pv_net_end(struct pv_net_worker *w, uint64_t deadline);
/* Be served by a shared thread. What pv_iothread_attach says, or fcntl(2). */
int pv_net_join(struct pv_net_worker *w, struct pv_iothread *thread);
/* No more, once the device stops. -ETIMEDOUT: it goes on; ask again. */
int pv_net_leave(struct pv_net_worker *w, uint64_t deadline);

/* Become the owner; what the ioctl says. */
int pv_net_vhost_open(int vhost_fd);
void pv_net_vhost_close(int vhost_fd);
/* Have the kernel serve all pairs. -EOPNOTSUPP: it lacks a feature that was negotiated; what the
 * ioctls say; nothing is served then. */
int pv_net_vhost_start(struct pv_net *net);
/* No more; for the thread. */
void pv_net_vhost_stop(struct pv_net *net);
/* The same, if the thread has not, and nothing is left of it; for who has ended the thread. */
void pv_net_vhost_end(struct pv_net *net);

#endif
