/* What a thread may ask of the kernel from now on, by the list of its kind (seccomp(2)).
 *
 * The lists are table.py's. A call that is on none ends the process, with a line that crash.h writes;
 * or, to find what a list lacks, is carried out after the line about it. */
#ifndef PV_SANDBOX_FILTER_H
#define PV_SANDBOX_FILTER_H

enum pv_sandbox_mode {
	PV_SANDBOX_OFF,
	PV_SANDBOX_ON,
	PV_SANDBOX_LOG, /* what is on no list is carried out after all */
};

/* In the order of LISTS in table.py. */
enum pv_sandbox_list {
	PV_SANDBOX_CONTROL,
	PV_SANDBOX_VCPU,
	PV_SANDBOX_DISK,
	PV_SANDBOX_DISK_POOL, /* without io_uring */
	PV_SANDBOX_IOTHREAD,
	PV_SANDBOX_IOTHREAD_POOL,
	PV_SANDBOX_POOL,
	PV_SANDBOX_NET,
	PV_SANDBOX_PORTS,
	PV_SANDBOX_CONSOLE,
	PV_SANDBOX_VSOCK,
	PV_SANDBOX_VACANT,
	PV_SANDBOX_RNG,
	PV_SANDBOX_BALLOON,
	PV_SANDBOX_LISTS,
};

/* Have threads take their lists, in one of the modes, from now on; before any is started that is to.
 * -ENOSYS where the kernel has no such filters, or the processor's calls are not known. */
int pv_sandbox_arm(int mode);
/* The mode. Any thread. */
int pv_sandbox_mode(void);
/* Let the calling thread have a list for good, and those that it starts; nothing without a mode.
 * -errno of seccomp(2). */
int pv_sandbox_enter(int list);
/* The same with PV_SANDBOX_CONTROL, for a thread that may be under that already. */
int pv_sandbox_enter_control(void);
/* Whether the calling thread, one of Python's, is under a list. */
int pv_sandbox_is_entered(void);

#endif
