#include "crash_internal.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "sandbox/internal.h"

#define NAME_BYTES 32
#define LINE_BYTES 512
#define PATIENCE_S 1
#define SIGSET_BYTES 8 /* the kernel's */
/* What the report itself needs of a stack, beyond what the kernel puts there. */
#define REPORT_STACK 8192

struct signal_name {
	int number;
	const char *name;
};

static const struct signal_name SIGNALS[] = {
	{SIGSEGV, "SIGSEGV"}, {SIGBUS, "SIGBUS"},   {SIGILL, "SIGILL"},
	{SIGFPE, "SIGFPE"},   {SIGABRT, "SIGABRT"}, {SIGSYS, "SIGSYS"},
};
#define SIGNAL_COUNT (sizeof(SIGNALS) / sizeof(SIGNALS[0]))

/* A terminal's, as TCGETS has it: a struct termios that is not the C library's. */
struct mode {
	long words[8];
};

/* A signal handler has no argument of ours, so this is the process's. */
static struct {
	int fd;
	atomic_bool taken; /* by the first thread that dies */
	_Atomic uintptr_t memory;
	_Atomic uint64_t memory_size;
	_Atomic int terminal;
	struct mode mode; /* what `terminal` is to have; written before it */
	pthread_key_t stack; /* of a thread that pv_crash_thread was called in */
	bool has_stack_key;
} report = {.fd = -1, .terminal = -1};

/* Of the initial-exec model, as one that is allocated at its first use is not for a handler. */
#define OWN static _Thread_local __attribute__((tls_model("initial-exec")))

OWN char own_name[NAME_BYTES];
OWN const char *own_device;

/* Where this code lies, by which an address in it can be found in the file. */
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _etext[] __attribute__((visibility("hidden")));

struct line {
	char text[LINE_BYTES];
	size_t length;
};

static void put(struct line *line, const char *text)
{
	while (*text && line->length < sizeof(line->text) - 1)
		line->text[line->length++] = *text++;
}

static void put_number(struct line *line, uint64_t value, unsigned base)
{
	char digits[24];
	size_t at = sizeof(digits);

	digits[--at] = '\0';
	do {
		digits[--at] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	put(line, &digits[at]);
}

static void put_hex(struct line *line, uint64_t value)
{
	put(line, "0x");
	put_number(line, value, 16);
}

static const char *name_of(int number)
{
	for (size_t i = 0; i < SIGNAL_COUNT; i++)
		if (SIGNALS[i].number == number)
			return SIGNALS[i].name;
	return "a signal";
}

/* As kill(2), tgkill(2) and abort(3) do. */
static bool was_sent(const siginfo_t *info)
{
	return info->si_code <= 0;
}

/* Of a list of sandbox/filter.h. */
static bool is_call(const siginfo_t *info)
{
	return info->si_signo == SIGSYS && !was_sent(info);
}

/* Its first three arguments: those that lists look at are among them. */
static void put_call(struct line *line, const siginfo_t *info, const void *context)
{
	const char *name = pv_sandbox_call_name(info->si_syscall);

	put(line, " at the system call ");
	put(line, name ? name : "of no name");
	put(line, " (");
	put_number(line, (uint64_t)(unsigned)info->si_syscall, 10);
	for (unsigned i = 0; i < 3; i++) {
		put(line, i == 0 ? ") with " : ", ");
		put_hex(line, pv_sandbox_argument(context, i));
	}
	put(line, ", which is not on the list ");
	put(line, pv_sandbox_list_name());
}

static void put_cause(struct line *line, const siginfo_t *info, const void *context)
{
	uintptr_t address = (uintptr_t)info->si_addr, memory = atomic_load(&report.memory);
	uint64_t size = atomic_load(&report.memory_size);

	if (was_sent(info)) {
		put(line, " sent by process ");
		put_number(line, (uint64_t)info->si_pid, 10);
		return;
	}
	if (is_call(info)) {
		put_call(line, info, context);
		return;
	}
	put(line, " at address ");
	put_hex(line, address);
	if (address < memory || address - memory >= size)
		return;
	put(line, " (guest memory + ");
	put_hex(line, address - memory);
	put(line, info->si_signo == SIGBUS ? "; its file was cut, or the host's memory failed)" : ")");
}

static uintptr_t code_address(const ucontext_t *context)
{
#if defined(__x86_64__)
	return (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
	return context->uc_mcontext.pc;
#else
#error "where is the program counter?"
#endif
}

static void put_code(struct line *line, uintptr_t code)
{
	uintptr_t begin = (uintptr_t)__ehdr_start;

	put(line, ", code ");
	put_hex(line, code);
	if (code < begin || code >= (uintptr_t)_etext)
		return;
	put(line, " (_native + ");
	put_hex(line, code - begin);
	put(line, ")");
}

static void put_thread(struct line *line)
{
	char kernel_name[16] = "";

	if (!own_name[0])
		(void)pv_sandbox_ask(SYS_prctl, PR_GET_NAME, (long)kernel_name, 0, 0);
	put(line, ": thread ");
	put_number(line, (uint64_t)pv_sandbox_ask(SYS_gettid, 0, 0, 0, 0), 10);
	put(line, " (");
	put(line, own_name[0] ? own_name : kernel_name);
	put(line, ")");
	if (own_device && own_device[0]) {
		put(line, ", device ");
		put(line, own_device);
	}
}

static void write_line(const struct line *line)
{
	const struct timespec patience = {.tv_sec = PATIENCE_S};
	struct pollfd there = {.fd = report.fd, .events = POLLOUT};

	/* Nobody may read it; the end is not to wait for them. */
	if (pv_sandbox_ask(SYS_ppoll, (long)&there, 1, (long)&patience, 0) == 1)
		(void)pv_sandbox_ask(SYS_write, report.fd, (long)line->text, (long)line->length, 0);
}

static void restore_terminal(void)
{
	int fd = atomic_load(&report.terminal);

	if (fd >= 0)
		(void)pv_sandbox_ask(SYS_ioctl, fd, TCSETS, (long)&report.mode, 0);
}

static void put_all(struct line *line, const char *what, const siginfo_t *info,
                    const void *context)
{
	put(line, "pyvirt: ");
	put(line, what);
	put_cause(line, info, context);
	put_thread(line);
	put_code(line, code_address(context));
	put(line, "; please report\n");
}

/* A call that is on no list, in the mode that only tells of it: once for each. */
static void log_call(const siginfo_t *info, void *context)
{
	uint64_t selector = pv_sandbox_argument(context, info->si_syscall == SYS_ioctl);
	bool has_selector = info->si_syscall == SYS_ioctl || info->si_syscall == SYS_socket;
	struct line line = {.length = 0};

	if (pv_sandbox_is_new(info->si_syscall, has_selector ? selector : 0)) {
		put_all(&line, "-sandbox log:", info, context);
		write_line(&line);
	}
	pv_sandbox_carry_out(context, info->si_syscall);
}

/* Have the signal end the process, by its default action. */
static void end_by(int number)
{
	const struct {
		long words[4];
	} defaults = {{(long)SIG_DFL}}; /* the kernel's struct sigaction, not the C library's */

	(void)pv_sandbox_ask(SYS_rt_sigaction, number, (long)&defaults, 0, SIGSET_BYTES);
}

/* Only what is safe in a signal handler (signal-safety(7)). All signals are blocked. */
static void on_crash(int number, siginfo_t *info, void *context)
{
	struct line line = {.length = 0};

	if (is_call(info) && pv_sandbox_use(context, info->si_syscall))
		return;
	if (is_call(info) && pv_sandbox_mode() == PV_SANDBOX_LOG) {
		log_call(info, context);
		return;
	}
	while (atomic_exchange(&report.taken, true))
		(void)pv_sandbox_ask(SYS_ppoll, 0, 0, 0, 0); /* another thread is at it, and ends us */
	put_all(&line, name_of(number), info, context);
	restore_terminal();
	write_line(&line);
	end_by(number);
	/* What faulted does so again on return; what was sent is sent again, and a call is over. */
	if (was_sent(info) || is_call(info))
		(void)pv_sandbox_ask(SYS_tgkill, pv_sandbox_ask(SYS_getpid, 0, 0, 0, 0),
		                     pv_sandbox_ask(SYS_gettid, 0, 0, 0, 0), number, 0);
}

static void free_stack(void *block)
{
	const stack_t none = {.ss_flags = SS_DISABLE};

	(void)sigaltstack(&none, NULL);
	free(block);
}

int pv_crash_report(int fd)
{
	struct sigaction action = {
		.sa_sigaction = on_crash,
		.sa_flags = SA_SIGINFO | SA_ONSTACK,
	};

	report.fd = fd;
	atomic_store(&report.taken, false);
	sigfillset(&action.sa_mask);
	for (size_t i = 0; i < SIGNAL_COUNT; i++)
		if (sigaction(SIGNALS[i].number, &action, NULL))
			return -errno;
	return 0;
}

void pv_crash_name(const char *name)
{
	strncpy(own_name, name, sizeof(own_name) - 1);
}

void pv_crash_device(const char *device)
{
	own_device = device;
}

size_t pv_crash_stack_size(void)
{
	unsigned long least = getauxval(AT_MINSIGSTKSZ);

	return (least ? least : (unsigned long)MINSIGSTKSZ) + REPORT_STACK;
}

/* One thread at a time is here, as Python calls it with its lock held. */
static int make_stack_key(void)
{
	int error;

	if (report.has_stack_key)
		return 0;
	error = pthread_key_create(&report.stack, free_stack);
	report.has_stack_key = error == 0;
	return -error;
}

int pv_crash_thread(const char *name)
{
	stack_t stack = {.ss_size = pv_crash_stack_size()};
	int error;

	pv_crash_name(name);
	/* The main thread's is the process's, by which it is found. */
	if (syscall(SYS_gettid) != getpid())
		(void)prctl(PR_SET_NAME, own_name);
	error = make_stack_key();
	if (error || pthread_getspecific(report.stack))
		return error;
	stack.ss_sp = malloc(stack.ss_size);
	if (!stack.ss_sp)
		return -ENOMEM;
	error = pthread_setspecific(report.stack, stack.ss_sp);
	if (!error && sigaltstack(&stack, NULL)) {
		error = errno;
		(void)pthread_setspecific(report.stack, NULL);
	}
	if (error)
		free(stack.ss_sp);
	return -error;
}

void pv_crash_memory(const void *base, uint64_t size)
{
	atomic_store(&report.memory_size, 0);
	atomic_store(&report.memory, (uintptr_t)base);
	atomic_store(&report.memory_size, size);
}

void pv_crash_terminal(int fd)
{
	atomic_store(&report.terminal, -1);
	if (fd >= 0 && ioctl(fd, TCGETS, &report.mode) == 0)
		atomic_store(&report.terminal, fd);
}

void pv_crash_other_signals(sigset_t *set)
{
	sigfillset(set);
	for (size_t i = 0; i < SIGNAL_COUNT; i++)
		sigdelset(set, SIGNALS[i].number);
}
