/* Faults that a device commits because somebody asked for them: its driver is under test.
 *
 * A device's rules lie in its struct pv_virtio_irq (pv_virtio_irq_faults); its data path, and the
 * interrupts themselves, look at them. While there are none that costs one branch for each batch.
 * A rule counts what it is for, and strikes: not at the first `after`, then at each `every`-th, and
 * `count` times in all; of several rules all strike that match. */
#ifndef PV_FAULT_H
#define PV_FAULT_H

#include <stdint.h>

#define PV_FAULT_RULES 32 /* of a device, at most */

/* What a rule is for: bits. */
#define PV_FAULT_READ 1
#define PV_FAULT_WRITE 2
#define PV_FAULT_FLUSH 4
#define PV_FAULT_DISCARD 8
#define PV_FAULT_ZEROES 16    /* of a disk: write zeroes */
#define PV_FAULT_RX 32        /* a packet for the driver */
#define PV_FAULT_TX 64        /* a packet of the driver's */
#define PV_FAULT_INTERRUPT 128 /* a "used buffers" interrupt */

/* What it does. */
#define PV_FAULT_DELAY 1   /* the request begins later; others go on */
#define PV_FAULT_FAIL 2    /* it ends in an error, and nothing of it is done */
#define PV_FAULT_DROP 3    /* no answer and no interrupt before the rule goes; a packet is lost */
#define PV_FAULT_CORRUPT 4 /* a byte of what is read has all its bits turned */
#define PV_FAULT_DOUBLE 5  /* the interrupt is raised again a moment later */

struct pv_faults;

struct pv_fault {
	uint32_t kind;
	uint32_t ops;
	int error;         /* of PV_FAULT_FAIL: an errno */
	uint64_t delay_ns; /* of PV_FAULT_DELAY */
	uint64_t offset;   /* of PV_FAULT_CORRUPT: which byte of a request's data */
	uint64_t first;    /* sectors, of reads and writes that touch any of them; 0 and UINT64_MAX: */
	uint64_t last;     /* whatever the request is */
	uint64_t after;
	uint64_t every; /* from 1 */
	uint64_t count; /* 0: for ever */
};

struct pv_fault_state {
	uint32_t id;
	struct pv_fault fault;
	uint64_t seen; /* how often it matched */
	uint64_t hits; /* and struck */
};

/* All of these: any thread. Who adds or removes rules then writes the kick eventfds of the device's
 * queues, so that its threads look. */

/* The id of the new rule, from 1 up; -EINVAL; -ENOSPC: there are PV_FAULT_RULES. */
int pv_faults_add(struct pv_faults *faults, const struct pv_fault *fault);
/* Id 0: all rules. -ENOENT. */
int pv_faults_remove(struct pv_faults *faults, uint32_t id);
/* The rule at this place; -ENOENT: there are not so many. */
int pv_faults_read(struct pv_faults *faults, uint32_t index, struct pv_fault_state *state);

#endif
