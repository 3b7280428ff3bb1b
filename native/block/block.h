/* A virtio block device's data path: from the rings to a file of the host (virtio 1.2, 5.2).
 *
 * A thread in C, each queue's own or one for several, takes requests from a ring in batches, has
 * io_uring or a pool of threads carry them out, and completes each batch with one publish and at
 * most one interrupt. It never touches Python. A request that asks for what it may not have is
 * answered in its status byte; one that cannot be answered, and a ring whose rules are broken,
 * break the device. */
#ifndef PV_BLOCK_H
#define PV_BLOCK_H

#include <stdint.h>

#include "virtio/virtqueue.h"

#define PV_BLOCK_QUEUES 64           /* at most */
#define PV_BLOCK_ID_BYTES 20         /* of a serial number */
#define PV_BLOCK_RANGES 16           /* in one discard or write-zeroes request, at most */
#define PV_BLOCK_RANGE_SECTORS 2097152 /* in one of them, at most: 1 GiB */

#define PV_BLOCK_READONLY 1
#define PV_BLOCK_THREADS 2       /* a pool of threads in place of io_uring */
#define PV_BLOCK_UNMAP 4         /* zeroed ranges give their room back where the driver lets them */
#define PV_BLOCK_DETECT_ZEROES 8 /* writes of nothing but zeroes become write-zeroes */
#define PV_BLOCK_DETECT_UNMAP 16 /* and those give their room back */

struct pv_block;
struct pv_iothread;
struct pv_overlay;
struct pv_virtio_irq;

/* `fd`, `overlay` and `iothread` are borrowed until pv_block_free. The alignments are those of its direct I/O,
 * powers of two up to 4096, or 1; the length of the file is to be a multiple of `offset_align`. */
struct pv_block_config {
	int fd;
	uint32_t flags;
	uint64_t sectors;      /* of 512 bytes */
	uint32_t offset_align; /* of offset and length in the file */
	uint32_t memory_align; /* of a buffer's address */
	uint32_t iops;         /* requests a second, at most 1,000,000; 0: no limit */
	uint8_t id[20];        /* PV_BLOCK_ID_BYTES; padded with zeroes */
	struct pv_overlay *overlay;   /* takes what is written, and the file is only read; or NULL */
	struct pv_iothread *iothread; /* serves every queue; NULL: a thread for each */
};

/* Since the device was made. Requests are counted when they are answered. */
struct pv_block_stats {
	uint64_t reads;
	uint64_t writes;
	uint64_t flushes;
	uint64_t discards;
	uint64_t zeroes;
	uint64_t others;
	uint64_t bytes_read;
	uint64_t bytes_written;
	uint64_t errors;     /* answered with an I/O error or as unsupported */
	uint64_t throttled;  /* requests that had to wait for a token */
	uint64_t interrupts; /* batches that ended with an interrupt */
	uint64_t suppressed; /* batches that the driver did not want one for */
	uint64_t overlay_bytes; /* what the newest layer of an overlay takes of the host now */
};

/* -EINVAL for an alignment, or an overlay of another size; -ENOMEM. */
int pv_block_new(const struct pv_block_config *config, struct pv_block **out);
/* The device is stopped. */
void pv_block_free(struct pv_block *block);

/* Serve `count` queues (1 to PV_BLOCK_QUEUES) with the `features` that were negotiated; what is in
 * the rings already is taken at once. `irq` is borrowed until pv_block_stop. -EBUSY: started
 * already; -EINVAL: the iothread serves a device with the other engine; -ENOMEM; what
 * io_uring_setup(2) or pthread_create(3) say; nothing runs then. */
int pv_block_start(struct pv_block *block, uint64_t features, const struct pv_queue *queues,
                   uint32_t count, struct pv_virtio_irq *irq);

/* Begin no more requests, and wait until those that were begun are complete. -ETIMEDOUT: the host
 * did not complete them; all goes on as before. Any thread that may call pv_block_stop or
 * pv_block_resume, one of which is to follow. */
int pv_block_drain(struct pv_block *block, uint64_t timeout_ns);

/* After pv_block_drain: go on. */
void pv_block_resume(struct pv_block *block);

/* Take no more requests, and begin nothing of those in flight that can be left out: what
 * pv_block_stop, which is to follow, begins with. */
void pv_block_halt(struct pv_block *block);

/* Take no more requests, complete those in flight, leave the threads. A large one need not be
 * complete, and then has failed. Stopped: nothing. -ETIMEDOUT: the host has not completed some; the
 * guest will see no more of them than what the host itself writes to its buffers, and nothing that
 * was handed over here may be freed, nor the guest's memory be put to another use, until a later
 * call has returned 0. */
int pv_block_stop(struct pv_block *block, uint64_t timeout_ns);

/* The file has become longer or shorter; the device is stopped. */
void pv_block_set_sectors(struct pv_block *block, uint64_t sectors);

/* Another layer, over the one before, takes what is written; the device is drained or stopped. */
void pv_block_set_overlay(struct pv_block *block, struct pv_overlay *overlay);

/* The errno of a failure of the host's since the last call and the type of its request,
 * VIRTIO_BLK_T_IN and so on; 0: there was none. One a second is kept at most, and each that is
 * calls pv_virtio_irq_news. Any thread, at any time. */
int pv_block_take_error(struct pv_block *block, uint32_t *type);

/* Any thread, at any time. */
void pv_block_stats(const struct pv_block *block, struct pv_block_stats *stats);

/* What direct I/O on `fd`, opened with O_DIRECT, asks of offsets and addresses, in bytes; where
 * the kernel does not tell, what a read shows. -EINVAL: direct I/O does not work there. */
int pv_block_alignment(int fd, uint32_t *offset_align, uint32_t *memory_align);

#endif
