/* The line that a thread leaves when it dies, one process for each way to die. */
#include "crash_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/filter.h"
#include "tests/check.h"
#include "thread_internal.h"

#define PAGE 4096

typedef void way(void);

struct death {
	int signal;
	char line[1024];
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

static void send_sigfpe(void)
{
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGFPE);
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

static void crash_everywhere(void)
{
	pthread_t threads[8];

	for (uintptr_t i = 0; i < 8; i++)
		CHECK_EQ(pv_thread_start(&threads[i], crash_with_a_device, (void *)(i * 8)), 0);
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

static void call_without_a_sandbox(void)
{
	in_a_thread(call_what_is_not_listed);
	abort();
}

static void *end_well(void *argument)
{
	stack_t stack;

	CHECK_EQ(pv_crash_thread("short"), 0);
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
	death = die(execute_nonsense, -1);
	CHECK_EQ(death.signal, SIGILL);
	check_line(&death, "pyvirt: SIGILL at address 0x", " (the main thread), code");
	death = die(abort, -1);
	CHECK_EQ(death.signal, SIGABRT);
	check_line(&death, "pyvirt: SIGABRT sent by process ", " (the main thread), code");
	death = die(send_sigfpe, -1);
	CHECK_EQ(death.signal, SIGFPE);
	check_line(&death, "pyvirt: SIGFPE sent by process ", " (the main thread), code");
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
	death = die(crash_everywhere, -1);
	CHECK_EQ(death.signal, SIGSEGV);
	check_line(&death, "pyvirt: SIGSEGV at address 0x", " (a thread), device vda, ");
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

int main(void)
{
	test_lines();
	test_threads();
	test_sandboxes();
	test_a_full_pipe();
	test_threads_that_end();
	return 0;
}
