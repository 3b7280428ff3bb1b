/* The line that a thread leaves when it dies, one process for each way to die. */
#include "crash_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pty.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "sandbox/filter.h"
#include "tests/check.h"
#include "thread_internal.h"

#define PAGE 4096

typedef void way(void);

struct death {
	int signal;
	char line[4096];
};

/* Die in a child, whose report goes into a pipe of its own unless `fd` is given. */
static struct death die(way *how, int fd)
{
	struct death death = {0};
	const struct rlimit no_core = {0};
	int ends[2], status;
	ssize_t length;
	pid_t child;

	CHECK_EQ(pipe(ends), 0);
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		setrlimit(RLIMIT_CORE, &no_core);
		CHECK_EQ(pv_crash_thread("the main thread"), 0);
		CHECK_EQ(pv_crash_report(fd < 0 ? ends[1] : fd), 0);
		how();
		_exit(0);
	}
	close(ends[1]);
	for (size_t have = 0; have < sizeof(death.line) - 1; have += (size_t)length) {
		length = read(ends[0], death.line + have, sizeof(death.line) - 1 - have);
		CHECK(length >= 0);
		if (length == 0)
			break;
	}
	close(ends[0]);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK(WIFSIGNALED(status));
	death.signal = WTERMSIG(status);
	return death;
}

static void check_line(const struct death *death, const char *begin, const char *middle)
{
	const char *end = strchr(death->line, '\n');

	if (strncmp(death->line, begin, strlen(begin)) || !strstr(death->line, middle))
		fprintf(stderr, "line: %s, not: %s … %s\n", death->line, begin, middle);
	CHECK(strncmp(death->line, begin, strlen(begin)) == 0);
	CHECK(strstr(death->line, middle) != NULL);
	CHECK(end && end[1] == '\0');
	CHECK(strstr(death->line, ", code 0x") != NULL);
	CHECK(strstr(death->line, "; please report\n") != NULL);
}

static void touch(volatile char *address)
{
	*address = 1;
}

static void touch_nothing(void)
{
	touch((char *)(uintptr_t)0x1000);
}

static void touch_a_cut_file(void)
{
	int fd = memfd_create("cut", MFD_CLOEXEC);
	char *memory;

	CHECK_EQ(ftruncate(fd, 4 * PAGE), 0);
	memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(memory != MAP_FAILED);
	pv_crash_memory(memory, 4 * PAGE);
	CHECK_EQ(ftruncate(fd, PAGE), 0);
	touch(memory);
	touch(memory + 3 * PAGE);
}

/* Guest memory that cannot be touched, as what is behind it. */
static char *closed_memory(void)
{
	char *memory = mmap(NULL, 5 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	pv_crash_memory(memory, 4 * PAGE);
	return memory;
}

static void touch_the_last_byte(void)
{
	touch(closed_memory() + 4 * PAGE - 1);
}

static void touch_what_is_behind(void)
{
	touch(closed_memory() + 4 * PAGE);
}

/* Nothing interrupts the report. */
static void look_at_the_mask(void)
{
	struct sigaction action;

	CHECK_EQ(sigaction(SIGBUS, NULL, &action), 0);
	for (int i = 1; i < SIGSYS; i++)
		CHECK(i == SIGKILL || i == SIGSTOP || sigismember(&action.sa_mask, i) == 1);
	abort();
}

static void send_sigfpe(void)
{
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGFPE);
}

/* It is no call, which would be told of and made. */
static void send_sigsys(void)
{
	CHECK_EQ(pv_sandbox_arm(PV_SANDBOX_LOG), 0);
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSYS);
}

static void execute_nonsense(void)
{
	__builtin_trap();
}

static void *crash_with_a_device(void *address)
{
	pv_thread_is(PV_SANDBOX_NET, "a thread", "vda");
	touch(address);
	return NULL;
}

static void in_a_thread(void *(*run)(void *))
{
	pthread_t thread;

	CHECK_EQ(pv_thread_start(&thread, run, (void *)(uintptr_t)0x1000), 0);
	pthread_join(thread, NULL);
}

static void crash_in_a_thread(void)
{
	in_a_thread(crash_with_a_device);
}

static __attribute__((noinline)) int deeper(volatile char *above)
{
	volatile char room[1024];

	room[0] = above[0];
	return above[0] ? deeper(room) + room[0] : 0;
}

static void *overflow(void *argument)
{
	char one = 1;

	(void)argument;
	pv_thread_is(PV_SANDBOX_NET, "deep", NULL);
	deeper(&one);
	return NULL;
}

static void overflow_a_stack(void)
{
	in_a_thread(overflow);
}

static void *overflow_elsewhere(void *argument)
{
	char one = 1;

	(void)argument;
	CHECK_EQ(pv_crash_thread("somebody else's, with a long name"), 0);
	CHECK_EQ(pv_crash_thread("somebody else's, with a name that is cut"), 0);
	deeper(&one);
	return NULL;
}

static void overflow_a_foreign_stack(void)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, overflow_elsewhere, NULL), 0);
	pthread_join(thread, NULL);
}

static void *crash_without_a_name(void *address)
{
	prctl(PR_SET_NAME, "a stranger");
	touch(address);
	return NULL;
}

static void crash_in_a_foreign_thread(void)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, crash_without_a_name, (void *)(uintptr_t)0x1000), 0);
	pthread_join(thread, NULL);
}

static pthread_barrier_t all_there;

static void *crash_with_the_others(void *address)
{
	pthread_barrier_wait(&all_there);
	return crash_with_a_device(address);
}

static void crash_everywhere(void)
{
	pthread_t threads[8];

	pthread_barrier_init(&all_there, NULL, 8);
	for (uintptr_t i = 0; i < 8; i++)
		CHECK_EQ(pv_thread_start(&threads[i], crash_with_the_others, (void *)(i * 8 + 8)), 0);
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
}

/* Sockets, of which the list has some kinds alone. Python's, as sanitizers need more than a device's. */
static void *call_what_is_not_listed(void *argument)
{
	pv_thread_is(PV_SANDBOX_CONTROL, "a thread", "vsock0");
	for (int i = 0; i < 2; i++) {
		int fds[] = {socket(AF_UNIX, SOCK_STREAM, 0), socket(AF_PACKET, SOCK_RAW, 0)};

		CHECK(fds[0] >= 0 && (fds[1] >= 0 || errno == EPERM));
		close(fds[0]);
		if (fds[1] >= 0)
			close(fds[1]);
	}
	return argument;
}

static void call_in_a_sandbox(void)
{
	CHECK_EQ(pv_sandbox_arm(PV_SANDBOX_ON), 0);
	in_a_thread(call_what_is_not_listed);
}

static void call_where_it_is_logged(void)
{
	CHECK_EQ(pv_sandbox_arm(PV_SANDBOX_LOG), 0);
	in_a_thread(call_what_is_not_listed);
	abort();
}

/* Each of them once, by what it asks for. */
static void *call_several(void *argument)
{
	pv_thread_is(PV_SANDBOX_CONTROL, "a thread", "vsock0");
	for (int i = 0; i < 2; i++) {
		CHECK(socket(AF_PACKET, -1, 0) < 0);
		CHECK(socket(AF_CAN, -1, 0) < 0);
		CHECK_EQ(ioctl(-1, 0x1111), -1);
		CHECK_EQ(ioctl(-1, 0x2222), -1);
	}
	return argument;
}

static void log_several(void)
{
	CHECK_EQ(pv_sandbox_arm(PV_SANDBOX_LOG), 0);
	in_a_thread(call_several);
	abort();
}

static atomic_bool is_over;
static pthread_t waiting;

static void on_signal(int number)
{
	(void)number;
}

/* A call of all six arguments, which is made as it was meant, and one that a signal ends. */
static void *call_and_wait(void *argument)
{
	char source[] = "from here", target[sizeof(source)] = "";
	const struct iovec from = {source, sizeof(source)}, to = {target, sizeof(target)};
	sigset_t one;

	sigemptyset(&one);
	sigaddset(&one, SIGUSR1);
	pv_thread_is(PV_SANDBOX_CONTROL, "a thread", "vsock0");
	CHECK_EQ(syscall(SYS_process_vm_readv, getpid(), &to, 1L, &from, 1L, 0L), sizeof(source));
	CHECK_EQ(strcmp(target, "from here"), 0);
	CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &one, NULL), 0);
	CHECK(syscall(SYS_pause) < 0 && errno == EINTR);
	atomic_store(&is_over, true);
	return argument;
}

static void log_what_waits(void)
{
	struct sigaction action = {.sa_handler = on_signal};

	CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	CHECK_EQ(pv_sandbox_arm(PV_SANDBOX_LOG), 0);
	CHECK_EQ(pv_thread_start(&waiting, call_and_wait, NULL), 0);
	while (!atomic_load(&is_over)) {
		pthread_kill(waiting, SIGUSR1);
		usleep(1000);
	}
	pthread_join(waiting, NULL);
	abort();
}

static void call_without_a_sandbox(void)
{
	in_a_thread(call_what_is_not_listed);
	abort();
}

static void *end_well(void *argument)
{
	stack_t stack;

	CHECK_EQ(pv_crash_thread("short"), 0);
	CHECK_EQ(pv_crash_thread("another"), 0);
	CHECK_EQ(sigaltstack(NULL, &stack), 0);
	CHECK((stack.ss_flags & SS_DISABLE) == 0);
	return argument;
}

/* Their stacks go with them, as the address sanitizer sees. */
static void test_threads_that_end(void)
{
	for (int i = 0; i < 100; i++) {
		pthread_t thread;

		CHECK_EQ(pthread_create(&thread, NULL, end_well, NULL), 0);
		CHECK_EQ(pthread_join(thread, NULL), 0);
	}
}

static void test_lines(void)
{
	struct death death = die(touch_nothing, -1);

	CHECK_EQ(death.signal, SIGSEGV);
	check_line(&death, "pyvirt: SIGSEGV at address 0x1000: thread ", " (the main thread), code");
	CHECK(strstr(death.line, "(_native + 0x") != NULL);
	death = die(touch_a_cut_file, -1);
	CHECK_EQ(death.signal, SIGBUS);
	check_line(&death, "pyvirt: SIGBUS at address 0x",
	           " (guest memory + 0x3000; its file was cut, or the host's memory failed): thread ");
	death = die(touch_the_last_byte, -1);
	CHECK_EQ(death.signal, SIGSEGV);
	check_line(&death, "pyvirt: SIGSEGV at address 0x", " (guest memory + 0x3fff): thread ");
	death = die(touch_what_is_behind, -1);
	CHECK_EQ(death.signal, SIGSEGV);
	check_line(&death, "pyvirt: SIGSEGV at address 0x", "000: thread ");
	death = die(execute_nonsense, -1);
	CHECK_EQ(death.signal, SIGILL);
	check_line(&death, "pyvirt: SIGILL at address 0x", " (the main thread), code");
	death = die(abort, -1);
	CHECK_EQ(death.signal, SIGABRT);
	check_line(&death, "pyvirt: SIGABRT sent by process ", " (the main thread), code");
	death = die(send_sigfpe, -1);
	CHECK_EQ(death.signal, SIGFPE);
	check_line(&death, "pyvirt: SIGFPE sent by process ", " (the main thread), code");
	CHECK_EQ(die(look_at_the_mask, -1).signal, SIGABRT);
	death = die(send_sigsys, -1);
	CHECK_EQ(death.signal, SIGSYS);
	check_line(&death, "pyvirt: SIGSYS sent by process ", " (the main thread), code");
}

static void test_threads(void)
{
	struct death death = die(crash_in_a_thread, -1);

	CHECK_EQ(death.signal, SIGSEGV);
	check_line(&death, "pyvirt: SIGSEGV at address 0x1000: thread ", " (a thread), device vda, ");
	death = die(overflow_a_stack, -1);
	CHECK_EQ(death.signal, SIGSEGV);
	check_line(&death, "pyvirt: SIGSEGV at address 0x", " (deep), code ");
	death = die(overflow_a_foreign_stack, -1);
	CHECK_EQ(death.signal, SIGSEGV);
	check_line(&death, "pyvirt: SIGSEGV at address 0x", " (somebody else's, with a name th), ");
	death = die(crash_in_a_foreign_thread, -1);
	CHECK_EQ(death.signal, SIGSEGV);
	check_line(&death, "pyvirt: SIGSEGV at address 0x1000", " (a stranger), code ");
	for (int i = 0; i < 10; i++) {
		death = die(crash_everywhere, -1);
		CHECK_EQ(death.signal, SIGSEGV);
		check_line(&death, "pyvirt: SIGSEGV at address 0x", " (a thread), device vda, ");
	}
}

static unsigned lines_with(const char *text, const char *part)
{
	unsigned count = 0;

	for (; (text = strstr(text, part)); text++)
		count++;
	return count;
}

static void test_sandboxes(void)
{
	static const char call[] = " at the system call socket (41) with 0x11, 0x3, 0x0, which is not on "
				   "the list control: thread ";
	struct death death = die(call_in_a_sandbox, -1);
	char *second;

	CHECK_EQ(death.signal, SIGSYS);
	check_line(&death, "pyvirt: SIGSYS at", call);
	check_line(&death, "pyvirt: SIGSYS at", " (a thread), device vsock0, ");
	death = die(call_without_a_sandbox, -1);
	CHECK_EQ(death.signal, SIGABRT);
	check_line(&death, "pyvirt: SIGABRT sent", "");
	/* Once, and the call is made. */
	death = die(call_where_it_is_logged, -1);
	CHECK_EQ(death.signal, SIGABRT);
	second = strchr(death.line, '\n') + 1;
	CHECK(strncmp(second, "pyvirt: SIGABRT sent", 20) == 0);
	*second = '\0';
	check_line(&death, "pyvirt: -sandbox log: at", call);
	death = die(log_several, -1);
	CHECK_EQ(death.signal, SIGABRT);
	CHECK_EQ(lines_with(death.line, "-sandbox log: at the system call "), 4);
	CHECK_EQ(lines_with(death.line, "socket (41) with 0x11, "), 1);
	CHECK_EQ(lines_with(death.line, "socket (41) with 0x1d, "), 1);
	CHECK_EQ(lines_with(death.line, "ioctl (16) with 0xffffffff, 0x1111, "), 1);
	CHECK_EQ(lines_with(death.line, "ioctl (16) with 0xffffffff, 0x2222, "), 1);
	death = die(log_what_waits, -1);
	CHECK_EQ(death.signal, SIGABRT);
	CHECK_EQ(lines_with(death.line, "the system call process_vm_readv (310) with "), 1);
	CHECK_EQ(lines_with(death.line, "the system call pause (34) "), 1);
}

/* Whoever holds the other end up does not hold up the end. */
static void test_a_full_pipe(void)
{
	static const char chunk[PAGE];
	struct death death;
	int ends[2];

	CHECK_EQ(pipe2(ends, O_NONBLOCK), 0);
	while (write(ends[1], chunk, sizeof(chunk)) > 0)
		;
	CHECK_EQ(fcntl(ends[1], F_SETFL, 0), 0);
	death = die(touch_nothing, ends[1]);
	CHECK_EQ(death.signal, SIGSEGV);
	CHECK(death.line[0] == '\0');
	close(ends[0]);
	close(ends[1]);
}

static int tty;

static bool is_raw(void)
{
	struct termios mode;

	CHECK_EQ(tcgetattr(tty, &mode), 0);
	return (mode.c_lflag & ICANON) == 0;
}

static void make_raw(void)
{
	struct termios mode;

	CHECK_EQ(tcgetattr(tty, &mode), 0);
	cfmakeraw(&mode);
	CHECK_EQ(tcsetattr(tty, TCSANOW, &mode), 0);
}

static void abort_with_a_terminal(void)
{
	pv_crash_terminal(tty);
	make_raw();
	abort();
}

static void abort_without_one(void)
{
	pv_crash_terminal(tty);
	make_raw();
	pv_crash_terminal(-1);
	abort();
}

/* It is as it was, unless that is not asked for any more. */
static void test_terminals(void)
{
	int host;

	CHECK_EQ(openpty(&host, &tty, NULL, NULL, NULL), 0);
	CHECK_EQ(die(abort_with_a_terminal, -1).signal, SIGABRT);
	CHECK(!is_raw());
	CHECK_EQ(die(abort_without_one, -1).signal, SIGABRT);
	CHECK(is_raw());
	close(host);
	close(tty);
}

int main(void)
{
	test_lines();
	test_threads();
	test_sandboxes();
	test_a_full_pipe();
	test_terminals();
	test_threads_that_end();
	return 0;
}
