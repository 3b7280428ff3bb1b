/* The console's rings and thread, with every kind of descriptor at its ends. */
#include "console/console_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>

#include "tests/check.h"

#define NOBODY {.in_fd = -1, .out_fd = -1, .listen_fd = -1, .quit_fd = -1}

static struct pv_console *console_new(void)
{
	struct pv_console *console;

	CHECK_EQ(pv_console_new(&console), 0);
	return console;
}

static struct pv_console *console_to(int out_fd)
{
	struct pv_console *console = console_new();
	struct pv_console_config config = NOBODY;

	config.out_fd = out_fd;
	CHECK_EQ(pv_console_start(console, &config), 0);
	return console;
}

static struct pv_console *console_from(int in_fd, int out_fd, int quit_fd, uint32_t flags)
{
	struct pv_console *console = console_new();
	struct pv_console_config config = {in_fd, out_fd, -1, quit_fd, flags, NULL};

	CHECK_EQ(pv_console_start(console, &config), 0);
	return console;
}

static void put(struct pv_console *console, const char *text)
{
	for (; *text; text++)
		CHECK(pv_console_put(console, (uint8_t)*text));
}

static struct pv_console_stats stats_of(struct pv_console *console)
{
	struct pv_console_stats stats;

	pv_console_stats(console, &stats);
	return stats;
}

/* The next bytes of input are exactly these. */
static void expect_input(struct pv_console *console, const char *text, size_t length)
{
	WAIT_FOR(pv_console_peek(console, (uint32_t)length - 1) >= 0);
	for (size_t i = 0; i < length; i++) {
		CHECK_EQ(pv_console_peek(console, 0), (uint8_t)text[i]);
		pv_console_take(console);
	}
	CHECK_EQ(pv_console_peek(console, 0), -EAGAIN);
}

static void expect_output(int fd, const char *text)
{
	char data[512];

	CHECK(strlen(text) < sizeof(data));
	read_all(fd, data, strlen(text));
	CHECK(memcmp(data, text, strlen(text)) == 0);
	CHECK(!readable(fd, 20));
}

static void make_pty(int *master, int *terminal)
{
	struct termios raw;
	char name[64];

	*master = posix_openpt(O_RDWR | O_NOCTTY);
	CHECK(*master >= 0 && grantpt(*master) == 0 && unlockpt(*master) == 0);
	CHECK_EQ(ptsname_r(*master, name, sizeof(name)), 0);
	*terminal = open(name, O_RDWR | O_NOCTTY);
	CHECK(*terminal >= 0 && tcgetattr(*terminal, &raw) == 0);
	cfmakeraw(&raw);
	CHECK_EQ(tcsetattr(*terminal, TCSANOW, &raw), 0);
}

static void test_a_prompt_comes_at_once(void)
{
	int fds[2];
	struct pv_console *console;
	uint64_t before = now_ns(), stamp;

	CHECK_EQ(pipe(fds), 0);
	console = console_to(fds[1]);
	CHECK_EQ(pv_console_first_output_ns(console), 0);
	put(console, "login: ");
	expect_output(fds[0], "login: ");
	stamp = pv_console_first_output_ns(console);
	CHECK(stamp >= before && stamp <= now_ns());
	put(console, "$ ");
	expect_output(fds[0], "$ ");
	CHECK_EQ(pv_console_first_output_ns(console), stamp);
	CHECK_EQ(stats_of(console).bytes_out, 9);
	pv_console_free(console);
	close(fds[0]);
	close(fds[1]);
}

struct flood {
	struct pv_console *console;
	uint32_t size;
	atomic_uint rooms;
	atomic_uint waits;
};

static void count_room(void *device, enum pv_console_event event)
{
	struct flood *flood = device;

	if (event == PV_CONSOLE_ROOM)
		atomic_fetch_add(&flood->rooms, 1);
}

/* Puts a stream, waiting for room only as told to: by the event. */
static void *flood_thread(void *argument)
{
	struct flood *flood = argument;
	unsigned rooms;

	for (uint32_t i = 0; i < flood->size; i++) {
		rooms = atomic_load(&flood->rooms);
		if (!pv_console_ready(flood->console)) {
			atomic_fetch_add(&flood->waits, 1);
			WAIT_FOR(atomic_load(&flood->rooms) != rooms);
		}
		CHECK(pv_console_put(flood->console, (uint8_t)(i % 251)));
	}
	CHECK_EQ(pv_console_flush(flood->console, 10000), 0);
	return NULL;
}

static void flood_through(int out_fd, int from_fd)
{
	struct flood flood = {.console = console_to(out_fd), .size = 1000000};
	pthread_t thread;
	uint8_t data[1111];
	ssize_t count;

	pv_console_set_device(flood.console, count_room, &flood);
	CHECK_EQ(pthread_create(&thread, NULL, flood_thread, &flood), 0);
	WAIT_FOR(atomic_load(&flood.waits) > 0);
	for (uint32_t at = 0; at < flood.size;) {
		CHECK(readable(from_fd, 10000));
		count = read(from_fd, data, sizeof(data));
		CHECK(count > 0);
		for (ssize_t i = 0; i < count; i++)
			CHECK_EQ(data[i], at++ % 251);
		if (at % 17 == 0)
			usleep(1000);
	}
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(atomic_load(&flood.rooms) > 0);
	CHECK_EQ(stats_of(flood.console).bytes_out, flood.size);
	CHECK_EQ(stats_of(flood.console).bytes_dropped, 0);
	pv_console_free(flood.console);
}

static void test_a_slow_reader_gets_everything(void)
{
	int fds[2], before;

	CHECK_EQ(pipe(fds), 0);
	before = fcntl(fds[1], F_GETFL);
	flood_through(fds[1], fds[0]);
	CHECK_EQ(fcntl(fds[1], F_GETFL), before); /* others share that description */
	close(fds[0]);
	close(fds[1]);

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	flood_through(fds[1], fds[0]);
	close(fds[0]);
	close(fds[1]);

	make_pty(&fds[0], &fds[1]);
	before = fcntl(fds[1], F_GETFL);
	flood_through(fds[1], fds[0]);
	CHECK_EQ(fcntl(fds[1], F_GETFL), before);
	flood_through(fds[0], fds[1]); /* a blocking master: the guarded way */
	close(fds[0]);
	close(fds[1]);
}

static void test_a_file_keeps_its_offset(void)
{
	char path[] = "/tmp/pyvirt-test-XXXXXX", data[16] = "";
	int fd = mkstemp(path);
	struct pv_console *console;

	CHECK(fd >= 0);
	write_all(fd, "header\n", 7);
	console = console_to(fd);
	put(console, "guest\n");
	CHECK_EQ(pv_console_flush(console, 10000), 0);
	pv_console_free(console);
	write_all(fd, "!", 1);
	CHECK_EQ(pread(fd, data, sizeof(data), 0), 14);
	CHECK(memcmp(data, "header\nguest\n!", 14) == 0);
	close(fd);
	unlink(path);
}

static void test_a_closed_pipe_holds_nobody_up(void)
{
	int fds[2];
	struct pv_console *console;

	CHECK_EQ(pipe(fds), 0);
	console = console_to(fds[1]);
	put(console, "seen");
	expect_output(fds[0], "seen");
	close(fds[0]);
	WAIT_FOR(stats_of(console).out_errno == EPIPE);
	for (int i = 0; i < 300000; i++) {
		WAIT_FOR(pv_console_ready(console));
		CHECK(pv_console_put(console, 'x'));
	}
	CHECK_EQ(pv_console_flush(console, 0), 0);
	CHECK(stats_of(console).bytes_discarded > 200000);
	pv_console_free(console);
	close(fds[1]);
}

/* Until nothing goes out any more and the ring is full. */
static void fill(struct pv_console *console)
{
	uint64_t out;

	do {
		out = stats_of(console).bytes_out;
		while (pv_console_put(console, 'x'))
			;
		usleep(50000);
	} while (stats_of(console).bytes_out != out);
}

static void test_flush_has_a_limit(void)
{
	int fds[2];
	struct pv_console *console;
	uint64_t before;

	CHECK_EQ(pipe(fds), 0);
	console = console_to(fds[1]);
	CHECK_EQ(pv_console_flush(console, 0), 0);
	fill(console);
	before = now_ns();
	CHECK_EQ(pv_console_flush(console, 50), -ETIMEDOUT);
	CHECK(now_ns() - before >= 50000000);
	pv_console_free(console);
	close(fds[0]);
	close(fds[1]);
}

/* Write eight bytes to an eventfd; false: they went in pieces, which an eventfd refuses. */
static bool put_eight(struct pv_console *console)
{
	uint64_t before = stats_of(console).bytes_out;

	put(console, "xxxxxxxx");
	WAIT_FOR(stats_of(console).bytes_out == before + 8 || stats_of(console).out_errno != 0);
	return stats_of(console).out_errno == 0;
}

/* An eventfd polls as writable while a large value still has to wait: the third eight bytes. */
static bool stop_is_bounded_when_a_write_blocks(void)
{
	int fd = eventfd(0, 0);
	struct pv_console *console;
	uint64_t before;
	bool whole;

	CHECK(fd >= 0);
	console = console_to(fd);
	whole = put_eight(console) && put_eight(console);
	put(console, "xxxxxxxx");
	whole = whole && pv_console_flush(console, 50) == -ETIMEDOUT;
	CHECK(whole || stats_of(console).out_errno == EINVAL);
	before = now_ns();
	pv_console_free(console);
	CHECK(now_ns() - before < 5000000000);
	close(fd);
	return whole;
}

static void test_stop_is_bounded_when_a_write_blocks(void)
{
	/* The console may come in between any two bytes, on a busy machine. */
	for (int i = 0; i < 50; i++) {
		if (stop_is_bounded_when_a_write_blocks())
			return;
	}
	fprintf(stderr, "eight bytes were never written at once\n");
	exit(1);
}

static void test_input_is_complete_and_waits_for_the_guest(void)
{
	enum { SIZE = 300000 };
	int fds[2];
	struct pv_console *console;
	uint8_t piece[1000];

	CHECK_EQ(pipe(fds), 0);
	console = console_from(fds[0], -1, -1, 0);
	CHECK_EQ(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
	for (uint32_t sent = 0, got = 0; got < SIZE;) {
		for (size_t i = 0; i < sizeof(piece); i++)
			piece[i] = (uint8_t)((sent + i) % 253);
		if (sent < SIZE && write(fds[1], piece, sizeof(piece)) == sizeof(piece)) {
			sent += (uint32_t)sizeof(piece);
			continue;
		}
		/* Take nothing before the ring is full: a byte is left for an escape. */
		if (sent < SIZE && stats_of(console).bytes_in - got < PV_CONSOLE_RING - 1) {
			usleep(100);
			continue;
		}
		if (sent == SIZE) {
			close(fds[1]);
			fds[1] = -1;
		}
		WAIT_FOR(pv_console_peek(console, 0) >= 0);
		while (pv_console_peek(console, 0) >= 0) {
			CHECK_EQ(pv_console_peek(console, 0), got++ % 253);
			pv_console_take(console);
		}
	}
	CHECK_EQ(stats_of(console).bytes_in, SIZE);
	pv_console_free(console);
	close(fds[0]);
}

static void test_end_of_input_is_not_the_end_of_output(void)
{
	int out[2], null = open("/dev/null", O_RDONLY);
	struct pv_console *console;

	CHECK(pipe(out) == 0 && null >= 0);
	console = console_from(null, out[1], -1, 0);
	usleep(10000);
	put(console, "still here");
	expect_output(out[0], "still here");
	pv_console_free(console);
	close(null);
	close(out[0]);
	close(out[1]);
}

static atomic_int breaks;

static void count_breaks(void *device, enum pv_console_event event)
{
	(void)device;
	if (event == PV_CONSOLE_BREAK)
		atomic_fetch_add(&breaks, 1);
}

static void test_escapes(void)
{
	int in[2], out[2], quit = eventfd(0, EFD_NONBLOCK);
	struct pv_console *console;
	char help[512];

	CHECK(pipe(in) == 0 && pipe(out) == 0 && quit >= 0);
	console = console_from(in[0], out[1], quit, PV_CONSOLE_ESCAPE);
	pv_console_set_device(console, count_breaks, NULL);

	write_all(in[1], "a\001\001b\001ac\001A", 9);
	expect_input(console, "a\001b\001c\001", 6);
	write_all(in[1], "\001zq", 3);
	expect_input(console, "\001zq", 3);
	write_all(in[1], "\001", 1); /* and nothing for a while */
	usleep(10000);
	CHECK_EQ(pv_console_peek(console, 0), -EAGAIN);
	write_all(in[1], "k", 1);
	expect_input(console, "\001k", 2);

	put(console, "before");
	expect_output(out[0], "before");
	write_all(in[1], "\001h", 2);
	CHECK(readable(out[0], 10000));
	CHECK(read(out[0], help, sizeof(help)) > 100);
	CHECK(strstr(help, "Ctrl-A X") != NULL);

	CHECK_EQ(atomic_load(&breaks), 0);
	write_all(in[1], "\001b", 2);
	WAIT_FOR(atomic_load(&breaks) == 1);

	CHECK(!readable(quit, 20));
	write_all(in[1], "\001x", 2);
	CHECK(readable(quit, 10000));
	CHECK_EQ(pv_console_peek(console, 0), -EAGAIN);
	pv_console_free(console);
	for (int i = 0; i < 2; i++) {
		close(in[i]);
		close(out[i]);
	}
	close(quit);
}

static void test_without_the_flag_ctrl_a_is_a_byte(void)
{
	int in[2], quit = eventfd(0, EFD_NONBLOCK);
	struct pv_console *console;

	CHECK(pipe(in) == 0 && quit >= 0);
	console = console_from(in[0], -1, quit, 0);
	write_all(in[1], "\001x\001h", 4);
	expect_input(console, "\001x\001h", 4);
	CHECK(!readable(quit, 20));
	pv_console_free(console);
	close(in[0]);
	close(in[1]);
	close(quit);
}

static int connect_to(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	CHECK_EQ(connect(fd, (const struct sockaddr *)address, sizeof(*address)), 0);
	return fd;
}

static void test_clients_come_and_go(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct pv_console_config config = NOBODY;
	struct pv_console *console = console_new();
	int client;
	char data[64];

	snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/pyvirt-test-%d.sock", getpid());
	unlink(address.sun_path);
	config.listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	CHECK_EQ(bind(config.listen_fd, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(listen(config.listen_fd, 1), 0);
	CHECK_EQ(pv_console_start(console, &config), 0);

	put(console, "nobody here yet\n");
	CHECK_EQ(pv_console_flush(console, 0), 0);
	client = connect_to(&address);
	expect_output(client, "nobody here yet\n");
	write_all(client, "in", 2);
	expect_input(console, "in", 2);
	close(client);

	/* One that stops sending still listens. */
	client = connect_to(&address);
	write_all(client, "last words", 10);
	CHECK_EQ(shutdown(client, SHUT_WR), 0);
	expect_input(console, "last words", 10);
	put(console, "answer");
	expect_output(client, "answer");
	close(client);

	/* One that sends and is gone is heard. */
	client = connect_to(&address);
	write_all(client, "hit and run", 11);
	close(client);
	expect_input(console, "hit and run", 11);

	/* Without one, the newest output is kept and the guest is never held up. */
	for (int i = 0; i < 300000; i++) {
		WAIT_FOR(pv_console_ready(console));
		CHECK(pv_console_put(console, 'x'));
	}
	put(console, "end");
	client = connect_to(&address);
	for (uint64_t got = 0;; got += (uint64_t)read(client, data, sizeof(data) - 1)) {
		memset(data, 0, sizeof(data));
		CHECK(got <= PV_CONSOLE_RING / 2 + 3);
		CHECK(readable(client, 10000));
		if (recv(client, data, sizeof(data) - 1, MSG_PEEK) > 0 && strstr(data, "end")) {
			CHECK(got >= PV_CONSOLE_RING / 4 - sizeof(data));
			break;
		}
	}
	CHECK_EQ(stats_of(console).out_errno, 0);
	close(client);
	pv_console_free(console);
	close(config.listen_fd);
	unlink(address.sun_path);
}

static void test_a_pty_is_opened_and_closed(void)
{
	int master, terminal;
	char name[64], data[16];
	struct pv_console *console;

	make_pty(&master, &terminal);
	CHECK_EQ(ptsname_r(master, name, sizeof(name)), 0);
	CHECK_EQ(fcntl(master, F_SETFL, O_NONBLOCK), 0);
	close(terminal);
	console = console_from(master, master, -1, 0);
	for (int round = 0; round < 2; round++) {
		/* Far more than a pty holds: nobody is there, so nobody is waited for. */
		for (int i = 0; i < 200000; i++) {
			WAIT_FOR(pv_console_ready(console));
			CHECK(pv_console_put(console, '.'));
		}
		CHECK_EQ(pv_console_flush(console, 1000), 0);
		terminal = open(name, O_RDWR | O_NOCTTY);
		CHECK(terminal >= 0);
		read_all(terminal, data, sizeof(data));
		CHECK_EQ(data[0], '.');
		write_all(terminal, "typed", 5);
		expect_input(console, "typed", 5);
		close(terminal);
		usleep(1000);
	}
	pv_console_free(console);
	close(master);
}

static atomic_uint timers;

static void count_timers(void *device, enum pv_console_event event)
{
	(void)device;
	if (event == PV_CONSOLE_TIMER)
		atomic_fetch_add(&timers, 1);
}

static void test_timer(void)
{
	struct pv_console *console = console_to(-1);
	uint64_t before = now_ns();

	pv_console_set_device(console, count_timers, NULL);
	pv_console_arm(console, 1000000);
	pv_console_arm(console, 20000000); /* replaces the first */
	WAIT_FOR(atomic_load(&timers) == 1);
	CHECK(now_ns() - before >= 20000000);
	usleep(5000);
	CHECK_EQ(atomic_load(&timers), 1);
	pv_console_set_device(console, NULL, NULL);
	pv_console_arm(console, 1000000);
	usleep(5000);
	CHECK_EQ(atomic_load(&timers), 1);
	pv_console_free(console);
}

/* What /proc says of the console's thread: the mask of blocked signals. */
static uint64_t blocked_signals(void)
{
	char path[300], line[256];
	uint64_t blocked = 0;
	struct dirent *entry;
	DIR *tasks = opendir("/proc/self/task");

	CHECK(tasks);
	while ((entry = readdir(tasks))) {
		FILE *status;
		int ours = 0;

		snprintf(path, sizeof(path), "/proc/self/task/%s/status", entry->d_name);
		status = fopen(path, "r");
		while (status && fgets(line, sizeof(line), status)) {
			ours |= strcmp(line, "Name:\tconsole serial0\n") == 0;
			if (ours && strncmp(line, "SigBlk:", 7) == 0)
				blocked = strtoull(line + 7, NULL, 16);
		}
		if (status)
			fclose(status);
	}
	closedir(tasks);
	return blocked;
}

static void test_thread_takes_no_signals(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGALRM, SIGCHLD, SIGTSTP};
	struct pv_console *console = console_to(-1);
	sigset_t mine;
	uint64_t blocked = 0;

	WAIT_FOR((blocked = blocked_signals()) != 0);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		CHECK(blocked >> (signals[i] - 1) & 1);
	CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &mine), 0);
	CHECK_EQ(sigismember(&mine, SIGTERM), 0);
	pv_console_free(console);
}

static void test_start_and_stop(void)
{
	struct pv_console *console = console_new();
	struct pv_console_config config = NOBODY;
	int fds[2];

	CHECK_EQ(pipe(fds), 0);
	config.out_fd = fds[0];
	CHECK_EQ(pv_console_start(console, &config), -EBADF); /* not open for writing */
	config.out_fd = fds[1];
	config.listen_fd = 1000000;
	CHECK_EQ(pv_console_start(console, &config), -EBADF);
	config.listen_fd = -1;
	pv_console_stop(console);

	put(console, "early ");
	CHECK_EQ(pv_console_start(console, &config), 0);
	CHECK_EQ(pv_console_start(console, &config), -EBUSY);
	expect_output(fds[0], "early ");
	pv_console_stop(console);
	put(console, "late");
	CHECK_EQ(pv_console_start(console, &config), 0);
	expect_output(fds[0], "late");
	pv_console_free(console);
	close(fds[1]);
	CHECK_EQ(read(fds[0], fds, 1), 0); /* nothing of it stayed open */
	close(fds[0]);
}

int main(void)
{
	RUN(test_a_prompt_comes_at_once);
	RUN(test_a_slow_reader_gets_everything);
	RUN(test_a_file_keeps_its_offset);
	RUN(test_a_closed_pipe_holds_nobody_up);
	RUN(test_flush_has_a_limit);
	RUN(test_stop_is_bounded_when_a_write_blocks);
	RUN(test_input_is_complete_and_waits_for_the_guest);
	RUN(test_end_of_input_is_not_the_end_of_output);
	RUN(test_escapes);
	RUN(test_without_the_flag_ctrl_a_is_a_byte);
	RUN(test_clients_come_and_go);
	RUN(test_a_pty_is_opened_and_closed);
	RUN(test_timer);
	RUN(test_thread_takes_no_signals);
	RUN(test_start_and_stop);
	return 0;
}
