/* The device's side of a split virtqueue (virtio 1.2, section 2.7).
 *
 * A virtqueue is what is left of the queue's registers when the driver has finished with them: a
 * private copy, checked once, with the rings' addresses translated once. Everything that lies in
 * guest memory is read once, then checked, and only then used, so a driver that changes it
 * meanwhile gains nothing. What a driver may not do breaks the queue, for good and without harm.
 *
 * One thread at a time may use a virtqueue, except for pv_virtqueue_error. A device's loop:
 *
 *     do {
 *             pv_virtqueue_disable_kicks(q);
 *             while (pv_virtqueue_pop(q, &chain) == 1)
 *                     pv_virtqueue_push(q, chain.head, serve(&chain));
 *             pv_virtqueue_publish(q);
 *             if (pv_virtqueue_needs_notify(q))
 *                     interrupt();
 *     } while (pv_virtqueue_enable_kicks(q));
 */
#ifndef PV_VIRTQUEUE_H
#define PV_VIRTQUEUE_H

#include <stdint.h>
#include <sys/uio.h>

#include "vcpu/memory.h"

#define PV_VIRTQUEUE_SIZE_MAX 1024
#define PV_CHAIN_MAX 1024

struct pv_virtqueue;

struct pv_virtqueue_config {
	uint64_t desc;     /* guest-physical address of the descriptor table, a multiple of 16 */
	uint64_t avail;    /* of the available ring, a multiple of 2 */
	uint64_t used;     /* of the used ring, a multiple of 4 */
	uint16_t size;     /* entries: a power of two, 1 to PV_VIRTQUEUE_SIZE_MAX */
	uint8_t event_idx; /* VIRTIO_F_EVENT_IDX was negotiated */
	uint8_t indirect;  /* VIRTIO_F_INDIRECT_DESC was negotiated */
};

/* A queue for a device to serve. Both are borrowed until the device is stopped. */
struct pv_queue {
	struct pv_virtqueue *ring; /* NULL, where a device may lack it: not made ready */
	int kick_fd;               /* an eventfd */
};

/* A buffer of the driver: what the device may read, then what it may write. */
struct pv_chain {
	uint16_t head;     /* to be given back to pv_virtqueue_push */
	uint16_t readable; /* segments: iov[0] to iov[readable - 1] */
	uint16_t writable; /* iov[readable] to iov[readable + writable - 1] */
	uint64_t readable_bytes;
	uint64_t writable_bytes; /* both together at most 2^32 */
	struct iovec iov[PV_CHAIN_MAX]; /* host addresses; no empty segments */
};

/* A queue at the start of its life: nothing offered, nothing used. `memory` is borrowed until
 * pv_virtqueue_free, `config` is copied. -EINVAL: a size or alignment that is not allowed, or a
 * part that is not wholly in one region of guest memory; -ENOMEM. */
int pv_virtqueue_new(const struct pv_memory *memory, const struct pv_virtqueue_config *config,
                     struct pv_virtqueue **out);
void pv_virtqueue_free(struct pv_virtqueue *queue);

/* Take the next chain that the driver offers. 1: it is in `chain` and in flight until pushed;
 * 0: there is none; -EPROTO: the driver broke the rules, pv_virtqueue_error says which, and so
 * does every later pop. A descriptor of length 0 adds no segment. A chain has PV_CHAIN_MAX
 * descriptors at most; in an indirect table it may be longer than the queue. */
int pv_virtqueue_pop(struct pv_virtqueue *queue, struct pv_chain *chain);

/* Complete a chain, in any order, of which the first `written` writable bytes were written. The
 * driver sees it after the next publish. A broken queue still takes what was in flight.
 * -EPROTO, without any effect: `head` is not in flight. */
int pv_virtqueue_push(struct pv_virtqueue *queue, uint16_t head, uint32_t written);

/* Show the driver every chain pushed so far. Once per batch. */
void pv_virtqueue_publish(struct pv_virtqueue *queue);

/* 1: the driver asked to be interrupted for a chain published since the last call, 0: it did not.
 * To be called after every publish. */
int pv_virtqueue_needs_notify(struct pv_virtqueue *queue);

/* Ask the driver for notifications ("kicks"), before waiting for one. 1: do not wait, more chains
 * came meanwhile; 0 and no effect on a broken queue. */
int pv_virtqueue_enable_kicks(struct pv_virtqueue *queue);

/* Tell the driver that it need not notify, while chains are served. */
void pv_virtqueue_disable_kicks(struct pv_virtqueue *queue);

/* Put every chain in flight back, as if it had never been popped: for a queue whose chains are
 * completed in the order they are popped in. The next entry to pop, modulo 2^16. */
uint16_t pv_virtqueue_rewind(struct pv_virtqueue *queue);

/* Go on at the entry `next`, after somebody else has served the queue up to there, and completed
 * all of it. Nothing is in flight. */
void pv_virtqueue_seek(struct pv_virtqueue *queue, uint16_t next);

/* The next entries to take and to use, modulo 2^16, for pv_virtqueue_restore. Nothing is in
 * flight, and all is published. */
void pv_virtqueue_save(const struct pv_virtqueue *queue, uint16_t *next_avail,
                       uint16_t *next_used);
/* Go on as another queue of the same rings did: of a queue that nobody has used yet. Any numbers
 * will do; those that are not the driver's break the queue at a pop, or mean nothing to it. */
void pv_virtqueue_restore(struct pv_virtqueue *queue, uint16_t next_avail, uint16_t next_used);

/* Where the queue is, for somebody else who serves it: what pv_virtqueue_new was given. */
void pv_virtqueue_place(const struct pv_virtqueue *queue, struct pv_virtqueue_config *out);

/* How far the queue is served, as its used ring says: for who takes over from somebody else, and
 * no more to be trusted than the guest. Any thread. */
uint16_t pv_virtqueue_served(const struct pv_virtqueue *queue);

/* How many chains the driver has made available that are not used yet, as both rings say; no more to be
 * trusted. Any thread. */
uint16_t pv_virtqueue_waiting(const struct pv_virtqueue *queue);

/* Entries of the queue: chains that can be in flight at most. */
uint16_t pv_virtqueue_size(const struct pv_virtqueue *queue);

/* Chains popped and not yet pushed. */
uint16_t pv_virtqueue_in_flight(const struct pv_virtqueue *queue);

/* What the driver did wrong, in one line, for as long as the queue lives; NULL: the queue is not
 * broken. Any thread. */
const char *pv_virtqueue_error(const struct pv_virtqueue *queue);

#endif
