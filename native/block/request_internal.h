/* One request of a block device: what the driver's buffer says, and how far it has come. */
#ifndef PV_BLOCK_REQUEST_INTERNAL_H
#define PV_BLOCK_REQUEST_INTERNAL_H

#include <stdbool.h>

#include "block/block.h"
#include "iothread/io_internal.h"
#include "virtio/virtqueue.h"

#define PV_SECTOR 512

/* What a request may ask for. */
struct pv_block_limits {
	uint64_t sectors;
	uint64_t features; /* negotiated */
	bool readonly;
};

/* In bytes. */
struct pv_block_range {
	uint64_t offset;
	uint64_t length;
	bool punch;
};

struct pv_block_request {
	struct pv_io io; /* the operation under way; first, so that one is found by the other */
	uint32_t type;   /* VIRTIO_BLK_T_... */
	uint16_t head;
	int error;          /* errno of the host's failure behind the status, or 0 */
	uint8_t status;     /* VIRTIO_BLK_S_..., what the answer is going to be */
	uint8_t *answer;    /* where it goes: the last writable byte */
	uint32_t writable;  /* bytes, as many from the first one on as are written in the end */
	uint64_t offset;    /* in the file */
	uint64_t length;    /* of the data, in bytes */
	uint64_t done;      /* of it, or of the current range */
	uint64_t wanted;    /* of it, by the operation under way, at most */
	struct iovec *at;   /* where it goes on in `iov` */
	uint32_t left;      /* segments from there */
	uint32_t range;     /* the current one */
	uint32_t ranges;    /* when not 0: zero these */
	bool by_hand;       /* the file cannot zero a range: write zeroes */
	bool synced;
	bool misaligned;    /* the segments are not as direct I/O wants them */
	bool bounced;       /* the operation under way is one on `bounce` */
	bool here;          /* it is quick, and had better be carried out here and now */
	void *bounce;       /* an aligned buffer, or NULL */
	uint8_t *corrupt;   /* a fault: the byte of what is read that is to be wrong, or NULL */
	uint32_t lost_by;   /* while a fault keeps it: the rule, */
	uint64_t time_ns;   /* since when, or until when, */
	struct pv_block_request *next; /* and the next one */
	struct iovec other; /* the bounce buffer as a segment */
	struct pv_block_range zero[PV_BLOCK_RANGES];
	struct iovec iov[PV_CHAIN_MAX]; /* the data */
};

/* Read a chain into `request`. NULL, or why there is no answering it. */
const char *pv_block_parse(const struct pv_chain *chain, struct pv_block_request *request);

/* Whether it may be done: VIRTIO_BLK_S_OK, or the status that refuses it. */
uint8_t pv_block_check(const struct pv_block_limits *limits, struct pv_block_request *request);

/* Copy at most `length` bytes between a buffer and segments; return how many there were. */
uint64_t pv_block_gather(const struct iovec *iov, uint32_t count, void *buffer, uint64_t length);
uint64_t pv_block_scatter(const struct iovec *iov, uint32_t count, const void *buffer,
                          uint64_t length);

/* Zero what the driver may read in the end and no data went to: the status byte after it counts
 * as written only if all before it does (virtio 1.2, 2.7.8.2 and 2.7.8.3). Of a buffer larger than
 * a driver has for one request, only the beginning is: `writable` becomes less, as it may. */
void pv_block_clear_rest(struct pv_block_request *request);

#endif
