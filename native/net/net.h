/* A virtio network device's data path: between the rings and a tap or a socket of the host
 * (virtio 1.2, 5.1).
 *
 * Each pair of queues has a thread in C, or all of them are on one that other devices share. It
 * reads packets from the host straight into the driver's receive buffers and writes the driver's
 * packets straight to the host, in bursts, each with one publish and at most one interrupt. The
 * first thread serves the control queue, too. None of them touches Python. A packet that asks for
 * what it may not have is dropped and counted; a ring or a buffer that breaks the rules breaks the
 * device.
 *
 * The device outlives its activations and its backends: both come and go, in any order. Without a
 * backend, and while the link is down, packets are dropped. */
#ifndef PV_NET_H
#define PV_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_NET_PAIRS 64        /* of queues, at most */
#define PV_NET_HEADER 12       /* bytes of struct virtio_net_hdr_v1 before each packet */
#define PV_NET_FRAME_MIN 14    /* bytes of a packet: an Ethernet header */
#define PV_NET_FRAME_MAX 65557 /* and 64 KiB of IP behind one with two VLAN tags */
#define PV_NET_ADDRESSES 64    /* in each filter of addresses; more of them switch it off */

#define PV_NET_TAP 1    /* tap queues with IFF_VNET_HDR and headers of 12 bytes */
#define PV_NET_STREAM 2 /* a stream socket; each packet behind its length, 4 bytes, big-endian */
/* Another process, which has the pairs' rings from pv_net_attach to pv_net_detach; what is here serves
 * the control queue alone, whose driver cannot change offloads then. */
#define PV_NET_LENT 3

struct pv_iothread;
struct pv_memory;
struct pv_net;
struct pv_virtio_irq;

/* Limits are for all pairs together; 0: none. rx is what the driver receives. */
struct pv_net_config {
	uint8_t mac[6];
	uint64_t rx_bytes; /* a second, without headers */
	uint64_t rx_packets;
	uint64_t tx_bytes;
	uint64_t tx_packets;
};

/* Descriptors are borrowed until pv_net_detach; those of taps are made nonblocking. */
struct pv_net_backend {
	uint32_t kind;
	uint32_t count;       /* of pairs; a stream has one, and so has what is lent */
	const int *fds;       /* one for each pair; none where they are lent */
	const int *vhost_fds; /* the same, of /dev/vhost-net, for taps only; NULL: the threads do it */
	struct pv_iothread *iothread; /* that serves all pairs; NULL, or vhost: each has its own */
};

struct pv_net_pair {
	struct pv_queue rx;
	struct pv_queue tx;
};

/* What the driver has set up; all of it is borrowed until pv_net_stop, but for the arrays. */
struct pv_net_activation {
	uint64_t features; /* that were negotiated */
	const struct pv_net_pair *pairs;
	uint32_t count;           /* of pairs; the first alone is in use until the driver asks for more */
	struct pv_queue ctrl; /* without a ring: none */
	struct pv_virtio_irq *irq;
	const struct pv_memory *memory;
};

/* Since the device was made, over all pairs. Of what vhost does the kernel keeps no count. */
struct pv_net_stats {
	uint64_t rx_packets;
	uint64_t rx_bytes;
	uint64_t rx_filtered;  /* dropped: not for the driver */
	uint64_t rx_no_link;   /* dropped: the link is down */
	uint64_t rx_no_room;   /* dropped: larger than the driver's buffers can ever hold */
	uint64_t rx_unfit;     /* dropped: with offloads that the driver did not ask for */
	uint64_t rx_errors;    /* dropped: could not be read */
	uint64_t rx_starved;   /* times that the driver had no buffers left */
	uint64_t rx_throttled; /* times that the limit was reached */
	uint64_t tx_packets;
	uint64_t tx_bytes;
	uint64_t tx_malformed; /* dropped: a header or a length that cannot be */
	uint64_t tx_no_link;   /* dropped: no backend, or the link is down */
	uint64_t tx_errors;    /* dropped: refused by the host */
	uint64_t tx_blocked;   /* times that the host's queue was full */
	uint64_t tx_throttled; /* times that the limit was reached */
	uint64_t commands;     /* on the control queue, those refused among them */
	uint64_t kicks;
	uint64_t interrupts; /* bursts that ended with an interrupt */
	uint64_t suppressed; /* bursts that the driver did not want one for */
};

/* Addresses that a driver receives, of one kind: with the group bit or without it. */
struct pv_net_addresses {
	uint16_t count;
	bool all; /* more than fit */
	uint8_t list[PV_NET_ADDRESSES][6];
};

/* What the driver wants to receive (5.1.6.5), copied by every thread that looks at it. */
struct pv_net_mode {
	uint8_t mac[6];
	bool promiscuous;
	bool all_multicast;
	bool filters_vlans;
	uint32_t offloads; /* TUN_F_... */
	struct pv_net_addresses unicast;
	struct pv_net_addresses multicast;
	uint64_t vlans[64]; /* a bit for each of those that are received */
};

struct pv_net_state {
	struct pv_net_mode mode;
	uint32_t pairs; /* in use, from 1 */
};

/* -ENOMEM. */
int pv_net_new(const struct pv_net_config *config, struct pv_net **out);
/* The device is stopped and detached. */
void pv_net_free(struct pv_net *net);

/* Serve the pairs (1 to PV_NET_PAIRS). -EBUSY: started already; -EINVAL; -ENOMEM; what epoll_create(2),
 * epoll_ctl(2), pthread_create(3) or vhost say; nothing runs then. */
int pv_net_start(struct pv_net *net, const struct pv_net_activation *activation);
/* End the threads; packets in flight are lost. Without them: nothing. -ETIMEDOUT: the host keeps
 * some, and nothing that was handed over here may be freed until a later call has returned 0. */
int pv_net_stop(struct pv_net *net, uint64_t timeout_ns);

/* Pause the threads, for who is to call pv_net_resume or pv_net_stop: the queues have everything back
 * that was not done. -ETIMEDOUT: all goes on as before, unless the host kept vhost, which breaks the
 * device. Stopped: nothing. */
int pv_net_drain(struct pv_net *net, uint64_t timeout_ns);
/* Go on. -errno as of pv_net_start, and the device is broken. */
int pv_net_resume(struct pv_net *net);

/* What the driver has set up, of a device that is drained or stopped. */
void pv_net_save(struct pv_net *net, struct pv_net_state *state);
/* Let the next pv_net_start go on with that, as far as the features it is given go, or forget it by
 * pv_net_stop. The device is stopped. -EINVAL: it cannot be. */
int pv_net_restore(struct pv_net *net, const struct pv_net_state *state);

/* Use a backend from now on; the driver's packets in the rings wait meanwhile. -EBUSY: there is
 * one; -EINVAL; -ENOMEM; what fcntl(2), vhost or pthread_create(3) say; then there is none. */
int pv_net_attach(struct pv_net *net, const struct pv_net_backend *backend, uint64_t timeout_ns);
/* Let go of the backend, if there is one. -errno of pthread_create(3): the threads could not be
 * started again, and the device is broken. */
int pv_net_detach(struct pv_net *net, uint64_t timeout_ns);
/* 0: drop every packet. The link is up at first. -errno as above, or of vhost. */
int pv_net_set_link(struct pv_net *net, int up, uint64_t timeout_ns);

/* The three above pause the threads; -ETIMEDOUT: the host keeps some. The backend is in use still,
 * the device broken, and nothing but pv_net_stop and these is to be called. */

/* Have the driver tell its network where it is, if it has agreed to that (GUEST_ANNOUNCE): some
 * times in the next second, as it may find the link down still. Each is news, of which see
 * pv_net_take_announcement. */
void pv_net_announce(struct pv_net *net);

/* The driver was at work on another device before: as pv_net_announce, but that one which cannot be
 * asked sees no link for a moment (pv_net_is_flapping), so that it looks at its network anew. When
 * that is over is news, too, as of an announcement. */
void pv_net_arrive(struct pv_net *net);

/* Another configured address, for a driver that begins now: none is at work. */
void pv_net_set_mac(struct pv_net *net, const uint8_t mac[6]);

/* All of the above: one caller at a time. What follows: any thread, at any time. */

/* The address that the driver set, or the configured one. */
void pv_net_mac(struct pv_net *net, uint8_t mac[6]);
/* 1: the driver is asked to announce itself by its configuration, and has not answered. */
int pv_net_is_announcing(const struct pv_net *net);
/* 1: the driver is to see no link, whatever there is. */
int pv_net_is_flapping(const struct pv_net *net);
/* 1: it is to be told of its configuration, which has changed by either; once, after pv_virtio_irq_news told so. */
int pv_net_take_announcement(struct pv_net *net);
/* 1: the host's side of the backend has gone; once, after pv_virtio_irq_news told so. */
int pv_net_take_lost(struct pv_net *net);
/* What the driver wants to receive; who asks is told of the next change again. */
void pv_net_read_mode(struct pv_net *net, struct pv_net_mode *mode);
/* 1: that has changed for the first time since the backend came, or since it was read; once, after
 * pv_virtio_irq_news told so. */
int pv_net_take_filter_change(struct pv_net *net);
void pv_net_stats(const struct pv_net *net, struct pv_net_stats *stats);

#endif
