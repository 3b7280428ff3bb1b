/* The KVM_RUN loop of one vCPU.
 *
 * One thread calls pv_vcpu_run; any thread may call pv_vcpu_kick and read the counters. Port
 * accesses to C ranges and accesses that nobody claims are served inside; everything else ends
 * the call with KVM's exit reason for Python to look at. */
#ifndef PV_VCPU_H
#define PV_VCPU_H

#include <stdint.h>

#define PV_EXIT_REASONS 64

struct pv_vcpu;
struct pv_bus;

/* One access to a range of Python's. For a read, put the answer into `value` and call
 * pv_vcpu_run again. `size` is 1, 2, 4 or 8 bytes, or any number up to 8 for a piece of a memory
 * access that crosses a page. */
struct pv_access {
	uint64_t address;
	uint64_t value;
	uint32_t size;
	uint8_t space; /* PV_SPACE_... */
	uint8_t is_write;
};

struct pv_vcpu_stats {
	uint64_t exits[64];    /* returns of KVM_RUN by exit reason; PV_EXIT_REASONS entries */
	uint64_t cold;         /* accesses handed to Python */
	uint64_t unclaimed;    /* accesses that nobody claims */
	uint64_t first_run_ns; /* CLOCK_MONOTONIC just before the first KVM_RUN; 0: not yet */
};

/* What kvm_run says of an exit that ends the guest. */
struct pv_exit_detail {
	uint64_t code; /* hardware reason, suberror or event type, as the exit reason has it */
	uint32_t ndata;
	uint64_t data[16];
};

/* `fd` (borrowed) is the vCPU's descriptor, `run_size` what KVM_GET_VCPU_MMAP_SIZE says.
 * -ENOMEM or what mmap answers. */
int pv_vcpu_new(int fd, uint64_t run_size, const struct pv_bus *bus, struct pv_vcpu **out);
void pv_vcpu_free(struct pv_vcpu *vcpu);

/* Run the guest. Returns the exit reason (KVM_EXIT_...): KVM_EXIT_IO and KVM_EXIT_MMIO mean an
 * access to serve in pv_vcpu_access, KVM_EXIT_INTR that pv_vcpu_kick was called; or -errno of
 * KVM_RUN. After a kick every exit before it is complete: the registers are the guest's. */
int pv_vcpu_run(struct pv_vcpu *vcpu);

/* Make the current or else the next pv_vcpu_run return KVM_EXIT_INTR. */
void pv_vcpu_kick(struct pv_vcpu *vcpu);

struct pv_access *pv_vcpu_access(struct pv_vcpu *vcpu);
/* Only between two calls of pv_vcpu_run. */
void pv_vcpu_exit_detail(const struct pv_vcpu *vcpu, struct pv_exit_detail *out);
void pv_vcpu_read_stats(const struct pv_vcpu *vcpu, struct pv_vcpu_stats *out);

/* An ioctl as it is: its result, or -errno. Restarted when a signal interrupts it. */
int pv_ioctl(int fd, unsigned long request, void *argument);

#endif
