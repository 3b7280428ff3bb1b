#include "vcpu/vcpu.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "crash_internal.h"
#include "vcpu/bus_internal.h"

struct pv_vcpu {
	int fd;
	uint64_t run_size;
	struct kvm_run *run;
	const struct pv_bus *bus;
	_Atomic pid_t runner; /* thread inside pv_vcpu_run, 0: none */

	/* The exit being served; only the running thread touches it. */
	struct pv_access access;
	bool in_access; /* Python serves `access` */
	uint32_t element; /* of a string instruction's KVM_EXIT_IO */

	_Atomic uint64_t exits[PV_EXIT_REASONS];
	_Atomic uint64_t cold;
	_Atomic uint64_t unclaimed;
	_Atomic uint64_t first_run_ns;
};

/* The signal does nothing but make KVM_RUN return; immediate_exit closes the race before it. */
static int kick_signal(void)
{
	return SIGRTMIN + 1;
}

static void on_kick(int number)
{
	(void)number;
}

static int install_kick_handler(void)
{
	struct sigaction action = {.sa_handler = on_kick};

	sigemptyset(&action.sa_mask);
	return sigaction(kick_signal(), &action, NULL) ? -errno : 0;
}

static void count(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

int pv_vcpu_new(int fd, uint64_t run_size, const struct pv_bus *bus, struct pv_vcpu **out)
{
	struct pv_vcpu *vcpu = calloc(1, sizeof(*vcpu));
	int err;

	if (!vcpu)
		return -ENOMEM;
	vcpu->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vcpu->run == MAP_FAILED) {
		err = -errno;
		free(vcpu);
		return err;
	}
	err = install_kick_handler();
	if (err) {
		munmap(vcpu->run, run_size);
		free(vcpu);
		return err;
	}
	vcpu->fd = fd;
	vcpu->run_size = run_size;
	vcpu->bus = bus;
	*out = vcpu;
	return 0;
}

void pv_vcpu_free(struct pv_vcpu *vcpu)
{
	if (!vcpu)
		return;
	munmap(vcpu->run, vcpu->run_size);
	free(vcpu);
}

struct pv_access *pv_vcpu_access(struct pv_vcpu *vcpu)
{
	return &vcpu->access;
}

void pv_vcpu_exit_detail(const struct pv_vcpu *vcpu, struct pv_exit_detail *out)
{
	const struct kvm_run *run = vcpu->run;

	memset(out, 0, sizeof(*out));
	switch (run->exit_reason) {
	case KVM_EXIT_UNKNOWN:
		out->code = run->hw.hardware_exit_reason;
		break;
	case KVM_EXIT_FAIL_ENTRY:
		out->code = run->fail_entry.hardware_entry_failure_reason;
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		out->code = run->internal.suberror;
		out->ndata = run->internal.ndata < 16 ? run->internal.ndata : 16;
		memcpy(out->data, (const uint8_t *)run->internal.data, out->ndata * sizeof(uint64_t));
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		out->code = run->system_event.type;
		break;
	default:
		break;
	}
}

void pv_vcpu_read_stats(const struct pv_vcpu *vcpu, struct pv_vcpu_stats *out)
{
	for (unsigned i = 0; i < PV_EXIT_REASONS; i++)
		out->exits[i] = atomic_load_explicit(&vcpu->exits[i], memory_order_relaxed);
	out->cold = atomic_load_explicit(&vcpu->cold, memory_order_relaxed);
	out->unclaimed = atomic_load_explicit(&vcpu->unclaimed, memory_order_relaxed);
	out->first_run_ns = atomic_load_explicit(&vcpu->first_run_ns, memory_order_relaxed);
}

/* kvm_run is shared with the kernel and, for this byte, with pv_vcpu_kick. */
static void set_immediate_exit(struct kvm_run *run, uint8_t value)
{
	__atomic_store_n(&run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

void pv_vcpu_kick(struct pv_vcpu *vcpu)
{
	pid_t runner;

	set_immediate_exit(vcpu->run, 1);
	runner = atomic_load(&vcpu->runner);
	if (runner)
		syscall(SYS_tgkill, getpid(), runner, kick_signal());
}

static uint64_t load(const uint8_t *data, uint32_t size)
{
	uint64_t value = 0;

	memcpy(&value, data, size);
	return value;
}

/* One element of a port access that Python does not serve: byte by byte, little end first. */
static void serve_bytes(struct pv_vcpu *vcpu, uint16_t port, uint8_t *data, uint32_t size,
                        bool is_write)
{
	for (uint32_t i = 0; i < size; i++) {
		uint16_t at = (uint16_t)(port + i);
		const struct pv_range *range = pv_bus_find(vcpu->bus, PV_SPACE_PIO, at);

		if (!range || !range->read) {
			if (!is_write)
				data[i] = 0xff;
			if (i == 0)
				count(&vcpu->unclaimed);
		} else if (is_write) {
			range->write(range->opaque, (uint16_t)(at - range->base), data[i]);
		} else {
			data[i] = range->read(range->opaque, (uint16_t)(at - range->base));
		}
	}
}

static bool is_cold(const struct pv_vcpu *vcpu, uint32_t space, uint64_t address, uint32_t size)
{
	const struct pv_range *range = pv_bus_find(vcpu->bus, space, address);

	return range && !range->read && address - range->base + size <= range->size;
}

static void begin_access(struct pv_vcpu *vcpu, uint32_t space, uint64_t address,
                         const uint8_t *data, uint32_t size, bool is_write)
{
	vcpu->access = (struct pv_access){
		.address = address,
		.value = is_write ? load(data, size) : 0,
		.size = size,
		.space = (uint8_t)space,
		.is_write = is_write,
	};
	vcpu->in_access = true;
	count(&vcpu->cold);
}

/* Serve the elements of a port exit from vcpu->element on; true: Python is to serve one. */
static bool serve_io(struct pv_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	bool is_write = run->io.direction == KVM_EXIT_IO_OUT;
	bool cold = is_cold(vcpu, PV_SPACE_PIO, run->io.port, run->io.size);

	for (; vcpu->element < run->io.count; vcpu->element++) {
		uint8_t *at = data + (uint64_t)vcpu->element * run->io.size;

		if (cold) {
			begin_access(vcpu, PV_SPACE_PIO, run->io.port, at, run->io.size, is_write);
			return true;
		}
		serve_bytes(vcpu, run->io.port, at, run->io.size, is_write);
	}
	return false;
}

static bool serve_mmio(struct pv_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (is_cold(vcpu, PV_SPACE_MMIO, run->mmio.phys_addr, run->mmio.len)) {
		begin_access(vcpu, PV_SPACE_MMIO, run->mmio.phys_addr, run->mmio.data, run->mmio.len,
		             run->mmio.is_write);
		return true;
	}
	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	count(&vcpu->unclaimed);
	return false;
}

/* Take Python's answer over into kvm_run; true: the same exit has more for Python. */
static bool finish_access(struct pv_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	const struct pv_access *access = &vcpu->access;

	vcpu->in_access = false;
	if (access->space == PV_SPACE_MMIO) {
		if (!access->is_write)
			memcpy(run->mmio.data, &access->value, access->size);
		return false;
	}
	if (!access->is_write)
		memcpy((uint8_t *)run + run->io.data_offset + (uint64_t)vcpu->element * access->size,
		       &access->value, access->size);
	vcpu->element++;
	return serve_io(vcpu);
}

/* True: the exit is for Python. */
static bool serve_exit(struct pv_vcpu *vcpu)
{
	switch (vcpu->run->exit_reason) {
	case KVM_EXIT_IO:
		vcpu->element = 0;
		return serve_io(vcpu);
	case KVM_EXIT_MMIO:
		return serve_mmio(vcpu);
	default:
		return true;
	}
}

static void stamp_first_run(struct pv_vcpu *vcpu)
{
	struct timespec now;

	if (atomic_load_explicit(&vcpu->first_run_ns, memory_order_relaxed))
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	atomic_store_explicit(&vcpu->first_run_ns,
	                      (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
	                      memory_order_relaxed);
}

static int run_loop(struct pv_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (vcpu->in_access && finish_access(vcpu))
		return KVM_EXIT_IO;
	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			/* EAGAIN: a vCPU that waits for its INIT/SIPI was woken. */
			if (errno != EINTR && errno != EAGAIN)
				return -errno;
			if (!__atomic_load_n(&run->immediate_exit, __ATOMIC_SEQ_CST))
				continue;
			set_immediate_exit(run, 0);
			return KVM_EXIT_INTR;
		}
		if (run->exit_reason < PV_EXIT_REASONS)
			count(&vcpu->exits[run->exit_reason]);
		if (serve_exit(vcpu))
			return (int)run->exit_reason;
	}
}

/* Signals are the main thread's business; only the kick may interrupt a vCPU, and its faults. */
static void mask_signals(sigset_t *previous)
{
	sigset_t blocked;

	pv_crash_other_signals(&blocked);
	sigdelset(&blocked, kick_signal());
	pthread_sigmask(SIG_SETMASK, &blocked, previous);
}

int pv_vcpu_run(struct pv_vcpu *vcpu)
{
	sigset_t previous;
	int result;

	mask_signals(&previous);
	stamp_first_run(vcpu);
	atomic_store(&vcpu->runner, (pid_t)syscall(SYS_gettid));
	result = run_loop(vcpu);
	atomic_store(&vcpu->runner, 0);
	pthread_sigmask(SIG_SETMASK, &previous, NULL);
	return result;
}

int pv_ioctl(int fd, unsigned long request, void *argument)
{
	int result;

	do {
		result = ioctl(fd, request, argument);
	} while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : result;
}
