/* The KVM_RUN loop over a KVM of the test's own: what is served inside, what comes out and in what
 * order, and that no kick is lost. */
#include "vcpu/vcpu.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "tests/race.h"
#include "vcpu/bus.h"

enum { PAGE = 4096, RUN = 2 * PAGE, DATA = PAGE };
enum { OURS = 0x60, PYTHONS = 0x100, NOBODYS = 0x200, PORTS = 4, BYTES = 0x1000, STEPS = 8 };
#define PYTHONS_MEMORY UINT64_C(0xd0000000)

/* One return of KVM_RUN: with an errno, or an exit. */
struct step {
	int error;
	uint32_t reason;
	bool is_write;
	uint8_t size;
	uint32_t count;
	uint64_t address;
	const char *data; /* written by the guest, or there before it reads */
};

struct bench {
	int fd;
	struct kvm_run *run;
	struct pv_bus *bus;
	struct pv_vcpu *vcpu;
	uint8_t ports[PORTS]; /* what was written last; a read returns one more each time */
	struct step steps[STEPS];
	unsigned count, done;
	sigset_t mask; /* in KVM_RUN */
};

static struct bench *running;
static int (*instead)(void); /* of what is below, for the race */

static int port_step(struct bench *b, const struct step *step)
{
	struct kvm_run *run = b->run;

	run->io.direction = step->is_write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	run->io.port = (uint16_t)step->address;
	run->io.size = step->size;
	run->io.count = step->count;
	run->io.data_offset = DATA;
	memcpy((uint8_t *)run + DATA, step->data, step->size * step->count);
	return 0;
}

static int memory_step(struct bench *b, const struct step *step)
{
	struct kvm_run *run = b->run;

	run->mmio.phys_addr = step->address;
	run->mmio.len = step->size;
	run->mmio.is_write = step->is_write;
	memcpy(run->mmio.data, step->data, step->size);
	return 0;
}

static int run_once(struct bench *b)
{
	const struct step *step;

	pthread_sigmask(SIG_BLOCK, NULL, &b->mask);
	errno = EINTR;
	if (b->run->immediate_exit)
		return -1;
	CHECK(b->done < b->count);
	step = &b->steps[b->done++];
	errno = step->error;
	if (step->error)
		return -1;
	b->run->exit_reason = step->reason;
	if (step->reason == KVM_EXIT_IO)
		return port_step(b, step);
	return step->reason == KVM_EXIT_MMIO ? memory_step(b, step) : 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (!running || fd != running->fd || request != KVM_RUN)
		return (int)syscall(SYS_ioctl, fd, request, argument);
	return instead ? instead() : run_once(running);
}

static uint8_t read_port(void *bench, uint16_t offset)
{
	return ++((struct bench *)bench)->ports[offset];
}

static void write_port(void *bench, uint16_t offset, uint8_t value)
{
	((struct bench *)bench)->ports[offset] = value;
}

static void make(struct bench *b)
{
	memset(b, 0, sizeof(*b));
	b->fd = memfd_create("vcpu", MFD_CLOEXEC);
	CHECK_EQ(ftruncate(b->fd, RUN), 0);
	b->run = mmap(NULL, RUN, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	CHECK(b->run != MAP_FAILED);
	CHECK_EQ(pv_bus_new(&b->bus), 0);
	CHECK_EQ(pv_bus_add_ports(b->bus, OURS, PORTS, read_port, write_port, b), 0);
	CHECK_EQ(pv_bus_claim(b->bus, PV_SPACE_PIO, PYTHONS, PORTS), 0);
	CHECK_EQ(pv_bus_claim(b->bus, PV_SPACE_MMIO, PYTHONS_MEMORY, BYTES), 0);
	CHECK_EQ(pv_vcpu_new(b->fd, RUN, b->bus, &b->vcpu), 0);
	running = b;
}

static void unmake(struct bench *b)
{
	running = NULL;
	CHECK_EQ(b->done, b->count);
	pv_vcpu_free(b->vcpu);
	pv_bus_free(b->bus);
	munmap(b->run, RUN);
	close(b->fd);
}

/* Have KVM_RUN return so, now that it has done what it was to do before. */
static void script(struct bench *b, const struct step *steps, unsigned count)
{
	CHECK_EQ(b->done, b->count);
	CHECK(count <= STEPS);
	memcpy(b->steps, steps, count * sizeof(*steps));
	b->count = count;
	b->done = 0;
}

static int run(struct bench *b, const struct step *steps, unsigned count)
{
	script(b, steps, count);
	return pv_vcpu_run(b->vcpu);
}
#define RUN_STEPS(b, ...)                                                                          \
	run(b, (const struct step[]){__VA_ARGS__},                                                 \
	    sizeof((const struct step[]){__VA_ARGS__}) / sizeof(struct step))

#define IN(port, bytes, times, before)                                                             \
	{.reason = KVM_EXIT_IO, .address = (port), .size = (bytes), .count = (times), .data = (before)}
#define OUT(port, bytes, times, what)                                                              \
	{.reason = KVM_EXIT_IO, .address = (port), .size = (bytes), .count = (times), .data = (what), \
	 .is_write = true}
#define READ(where, bytes, before)                                                                 \
	{.reason = KVM_EXIT_MMIO, .address = (where), .size = (bytes), .data = (before)}
#define WRITE(where, bytes, what)                                                                  \
	{.reason = KVM_EXIT_MMIO, .address = (where), .size = (bytes), .data = (what), .is_write = true}
#define HALT {.reason = KVM_EXIT_HLT}
#define FAILS(number) {.error = (number)}

static bool has(const struct bench *b, const char *bytes, size_t count)
{
	return memcmp((const uint8_t *)b->run + DATA, bytes, count) == 0;
}

static struct pv_vcpu_stats stats(const struct bench *b)
{
	struct pv_vcpu_stats stats;

	pv_vcpu_read_stats(b->vcpu, &stats);
	return stats;
}

static void check_access(struct bench *b, uint64_t address, uint32_t size, uint64_t value)
{
	const struct pv_access *access = pv_vcpu_access(b->vcpu);

	CHECK_EQ(access->address, address);
	CHECK_EQ(access->size, size);
	CHECK_EQ(access->value, value);
}

/* Bytes go to ports of their own, elements of a string to the same ones. */
static void test_ports_that_c_serves(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(RUN_STEPS(&b, OUT(OURS + 1, 2, 3, "\x11\x22\x33\x44\x55\x66"), HALT), KVM_EXIT_HLT);
	CHECK_EQ(memcmp(b.ports, "\0\x55\x66", 4), 0);
	CHECK_EQ(RUN_STEPS(&b, IN(OURS + 1, 2, 3, "......"), HALT), KVM_EXIT_HLT);
	CHECK(has(&b, "\x56\x67\x57\x68\x58\x69", 6));
	/* Over the end of the range: what is behind it is nobody's. */
	CHECK_EQ(RUN_STEPS(&b, OUT(OURS + 2, 4, 1, "\x71\x72\x73\x74"), HALT), KVM_EXIT_HLT);
	CHECK_EQ(memcmp(b.ports, "\0\x58\x71\x72", 4), 0);
	CHECK_EQ(RUN_STEPS(&b, IN(OURS + 2, 4, 1, "...."), HALT), KVM_EXIT_HLT);
	CHECK(has(&b, "\x72\x73\xff\xff", 4));
	CHECK_EQ(stats(&b).exits[KVM_EXIT_IO], 4);
	CHECK_EQ(stats(&b).cold, 0);
	unmake(&b);
}

static void test_what_nobody_has(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(RUN_STEPS(&b, OUT(NOBODYS, 2, 2, "abcd"), IN(NOBODYS, 2, 2, "abcd"),
	                   WRITE(BYTES, 8, "abcdefgh"), READ(BYTES, 2, "ab"), HALT), KVM_EXIT_HLT);
	CHECK(has(&b, "\xff\xff\xff\xff", 4));
	CHECK_EQ(memcmp(b.run->mmio.data, "\xff\xff\xff\xff\xff\xff\xff\xff", 8), 0);
	CHECK_EQ(stats(&b).unclaimed, 6);
	/* What is written there stays as it is. */
	CHECK_EQ(RUN_STEPS(&b, OUT(NOBODYS, 4, 1, "abcd"), HALT), KVM_EXIT_HLT);
	CHECK(has(&b, "abcd", 4));
	unmake(&b);
}

/* Each element leaves by itself, and answers come to where they belong. */
static void test_strings_of_ports_that_python_serves(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(RUN_STEPS(&b, IN(PYTHONS + 2, 2, 3, "......"), HALT), KVM_EXIT_IO);
	for (unsigned i = 0; i < 3; i++) {
		check_access(&b, PYTHONS + 2, 2, 0);
		pv_vcpu_access(b.vcpu)->value = 0x4241 + 0x0202 * i;
		CHECK_EQ(pv_vcpu_run(b.vcpu), i < 2 ? KVM_EXIT_IO : KVM_EXIT_HLT);
	}
	CHECK(has(&b, "ABCDEF", 6));
	/* The next string begins with its first element. */
	CHECK_EQ(RUN_STEPS(&b, OUT(PYTHONS, 4, 2, "12345678"), HALT), KVM_EXIT_IO);
	check_access(&b, PYTHONS, 4, 0x34333231);
	CHECK_EQ(pv_vcpu_run(b.vcpu), KVM_EXIT_IO);
	check_access(&b, PYTHONS, 4, 0x38373635);
	CHECK_EQ(pv_vcpu_run(b.vcpu), KVM_EXIT_HLT);
	CHECK(has(&b, "12345678", 8));
	CHECK_EQ(stats(&b).cold, 5);
	/* Over the end of the range: nobody's, and not Python's. */
	CHECK_EQ(RUN_STEPS(&b, IN(PYTHONS + 2, 4, 1, "...."), HALT), KVM_EXIT_HLT);
	CHECK(has(&b, "\xff\xff\xff\xff", 4));
	CHECK_EQ(stats(&b).cold, 5);
	unmake(&b);
}

static void test_memory_that_python_serves(void)
{
	const uint64_t last = PYTHONS_MEMORY + BYTES - 4;
	struct bench b;

	make(&b);
	CHECK_EQ(RUN_STEPS(&b, READ(last, 4, "........"), HALT), KVM_EXIT_MMIO);
	check_access(&b, last, 4, 0);
	pv_vcpu_access(b.vcpu)->value = UINT64_C(0x1122334444434241);
	CHECK_EQ(pv_vcpu_run(b.vcpu), KVM_EXIT_HLT);
	CHECK_EQ(memcmp(b.run->mmio.data, "ABCD\0", 5), 0);
	CHECK_EQ(RUN_STEPS(&b, WRITE(last, 4, "1234"), HALT), KVM_EXIT_MMIO);
	check_access(&b, last, 4, 0x34333231);
	CHECK_EQ(pv_vcpu_run(b.vcpu), KVM_EXIT_HLT);
	CHECK_EQ(memcmp(b.run->mmio.data, "1234", 4), 0);
	CHECK_EQ(RUN_STEPS(&b, READ(last + 1, 4, "...."), HALT), KVM_EXIT_HLT);
	CHECK_EQ(stats(&b).cold, 2);
	CHECK_EQ(stats(&b).unclaimed, 1);
	unmake(&b);
}

static void test_a_kvm_that_fails(void)
{
	struct pv_vcpu *none;
	struct bench b;

	make(&b);
	CHECK_EQ(pv_vcpu_new(-1, RUN, b.bus, &none), -EBADF);
	/* A signal that is no kick, and a vCPU that was woken before its start. */
	CHECK_EQ(RUN_STEPS(&b, FAILS(EINTR), FAILS(EAGAIN), FAILS(EINTR), FAILS(EFAULT)), -EFAULT);
	CHECK_EQ(RUN_STEPS(&b, FAILS(ENXIO)), -ENXIO);
	CHECK_EQ(RUN_STEPS(&b, HALT), KVM_EXIT_HLT);
	CHECK(stats(&b).first_run_ns > 0);
	unmake(&b);
}

static int ask(struct bench *b, const struct step *steps, unsigned count)
{
	script(b, steps, count);
	return pv_ioctl(b->fd, KVM_RUN, NULL);
}

static void test_a_request_that_a_signal_interrupts(void)
{
	const struct step interrupted[] = {FAILS(EINTR), FAILS(EINTR), HALT};
	const struct step failed[] = {FAILS(EINTR), FAILS(EAGAIN)};
	struct bench b;

	make(&b);
	CHECK_EQ(ask(&b, interrupted, 3), 0);
	CHECK_EQ(ask(&b, failed, 2), -EAGAIN);
	unmake(&b);
}

/* What is before a kick is complete; it holds once. */
static void test_kicks_between_runs(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(RUN_STEPS(&b, IN(PYTHONS, 1, 2, "..")), KVM_EXIT_IO);
	pv_vcpu_access(b.vcpu)->value = 'x';
	pv_vcpu_kick(b.vcpu);
	pv_vcpu_kick(b.vcpu);
	CHECK_EQ(pv_vcpu_run(b.vcpu), KVM_EXIT_IO);
	pv_vcpu_access(b.vcpu)->value = 'y';
	CHECK_EQ(pv_vcpu_run(b.vcpu), KVM_EXIT_INTR);
	CHECK(has(&b, "xy", 2));
	CHECK_EQ(RUN_STEPS(&b, HALT), KVM_EXIT_HLT);
	unmake(&b);
}

/* In KVM_RUN a thread takes the kick and its own faults; afterwards what it did before. */
static void test_signals(void)
{
	const int kick = SIGRTMIN + 1;
	sigset_t before, after, pending, kicks;
	struct bench b;

	make(&b);
	sigemptyset(&kicks);
	sigaddset(&kicks, kick);
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, &kicks, NULL), 0);
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, NULL, &before), 0);
	CHECK_EQ(RUN_STEPS(&b, HALT), KVM_EXIT_HLT);
	CHECK(!sigismember(&b.mask, kick));
	CHECK(!sigismember(&b.mask, SIGSEGV));
	CHECK(sigismember(&b.mask, SIGTERM) && sigismember(&b.mask, SIGUSR1));
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, NULL, &after), 0);
	for (int i = 1; i < NSIG; i++)
		CHECK_EQ(sigismember(&after, i), sigismember(&before, i));
	/* Nobody is in KVM_RUN: nothing is sent. */
	pv_vcpu_kick(b.vcpu);
	CHECK_EQ(sigpending(&pending), 0);
	CHECK(!sigismember(&pending, kick));
	CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &kicks, NULL), 0);
	unmake(&b);
}

static void test_what_kvm_says_of_its_end(void)
{
	struct pv_exit_detail detail;
	struct bench b;

	make(&b);
	CHECK_EQ(RUN_STEPS(&b, {.reason = KVM_EXIT_INTERNAL_ERROR}), KVM_EXIT_INTERNAL_ERROR);
	b.run->internal.suberror = 3;
	b.run->internal.ndata = 2;
	b.run->internal.data[1] = 99;
	pv_vcpu_exit_detail(b.vcpu, &detail);
	CHECK_EQ(detail.code, 3);
	CHECK_EQ(detail.ndata, 2);
	CHECK_EQ(detail.data[1], 99);
	/* More than there is room for. */
	b.run->internal.ndata = UINT32_MAX;
	pv_vcpu_exit_detail(b.vcpu, &detail);
	CHECK_EQ(detail.ndata, 16);
	/* A reason that is not known yet is counted nowhere. */
	CHECK_EQ(RUN_STEPS(&b, {.reason = PV_EXIT_REASONS}), PV_EXIT_REASONS);
	pv_vcpu_exit_detail(b.vcpu, &detail);
	CHECK_EQ(detail.code, 0);
	CHECK_EQ(RUN_STEPS(&b, {.reason = KVM_EXIT_UNKNOWN}), KVM_EXIT_UNKNOWN);
	b.run->hw.hardware_exit_reason = 77;
	pv_vcpu_exit_detail(b.vcpu, &detail);
	CHECK_EQ(detail.code, 77);
	CHECK_EQ(RUN_STEPS(&b, {.reason = KVM_EXIT_FAIL_ENTRY}), KVM_EXIT_FAIL_ENTRY);
	b.run->fail_entry.hardware_entry_failure_reason = 0x80000021;
	pv_vcpu_exit_detail(b.vcpu, &detail);
	CHECK_EQ(detail.code, 0x80000021);
	CHECK_EQ(RUN_STEPS(&b, {.reason = KVM_EXIT_SYSTEM_EVENT}), KVM_EXIT_SYSTEM_EVENT);
	b.run->system_event.type = KVM_SYSTEM_EVENT_CRASH;
	pv_vcpu_exit_detail(b.vcpu, &detail);
	CHECK_EQ(detail.code, KVM_SYSTEM_EVENT_CRASH);
	CHECK_EQ(detail.ndata, 0);
	unmake(&b);
}

/* Either the kick finds that the thread runs, and sends its signal, or KVM_RUN finds the kick. */

enum { KICKER, RUNNER };

static bool was_seen;
static volatile sig_atomic_t was_signalled;
static atomic_bool is_kicked;

static void on_signal(int number)
{
	(void)number;
	was_signalled = 1;
}

static int look_for_kick(void)
{
	was_seen = __atomic_load_n(&running->run->immediate_exit, __ATOMIC_RELAXED);
	while (!atomic_load(&is_kicked))
		sched_yield();
	running->run->exit_reason = KVM_EXIT_HLT;
	return 0;
}

static void before_kick(void *opaque, int side)
{
	(void)opaque;
	if (side == KICKER)
		return;
	atomic_store(&is_kicked, false);
	running->run->immediate_exit = 0;
	was_signalled = 0;
}

static int kick_or_run(void *bench, int side)
{
	struct bench *b = bench;

	if (side == KICKER) {
		/* What a runner does first, so that both are there at once. */
		pthread_sigmask(SIG_BLOCK, NULL, &b->mask);
		(void)syscall(SYS_gettid);
		pv_vcpu_kick(b->vcpu);
		atomic_store(&is_kicked, true);
		return 0;
	}
	/* The signal that was sent is there when a system call returns, as the last one of a run does. */
	CHECK_EQ(pv_vcpu_run(b->vcpu), KVM_EXIT_HLT);
	return was_seen || was_signalled;
}

static void test_no_kick_is_lost(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	struct bench b;

	make(&b);
	CHECK_EQ(sigaction(SIGRTMIN + 1, &action, NULL), 0);
	instead = look_for_kick;
	race(before_kick, kick_or_run, &b);
	instead = NULL;
	unmake(&b);
}

int main(void)
{
	RUN(test_ports_that_c_serves);
	RUN(test_what_nobody_has);
	RUN(test_strings_of_ports_that_python_serves);
	RUN(test_memory_that_python_serves);
	RUN(test_a_kvm_that_fails);
	RUN(test_a_request_that_a_signal_interrupts);
	RUN(test_kicks_between_runs);
	RUN(test_signals);
	RUN(test_what_kvm_says_of_its_end);
	RUN(test_no_kick_is_lost);
	return 0;
}
