/* Ends of ports other than sockets: keys on a terminal, a pty that people come to and leave, pipes,
 * memory, and nobody. */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "tests/port/bench.h"

static uint64_t counter(const struct bench *b, enum pv_port_counter which)
{
	return atomic_load(&b->ports->counters[which]);
}

/* Greet a device whose port is as `config` says, but for its name. */
static void greet(struct bench *b, bool console, bool there)
{
	tell(b, DEVICE_READY);
	hear(b, PORT_ADD, 1);
	tell(b, PORT_READY);
	if (console)
		hear(b, CONSOLE_PORT, 1);
	hear(b, PORT_NAME, 1);
	if (there)
		hear(b, PORT_OPEN, 1);
	tell(b, PORT_OPEN);
}

static void expect_input(struct bench *b, const char *expected)
{
	size_t done = 0;

	while (done < strlen(expected)) {
		uint32_t length;
		const uint8_t *data;

		add(&b->queues[IN], NULL, LENGTH, PV_DESC_WRITE);
		data = take(&b->queues[IN], &length);
		CHECK(length <= strlen(expected) - done);
		CHECK_EQ(memcmp(data, expected + done, length), 0);
		done += length;
	}
}

static void test_keys_of_the_monitor(void)
{
	static const char typed[] = "a\001\001b\001ac\001bd\001xe\001zf";
	static const char seen[] = "a\001b\001c\017de\001zf";
	struct pv_port_config config = NOBODY;
	struct bench b;
	int keys[2], screen[2], quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	eventfd_t asked;
	char help[2];

	CHECK_EQ(pipe2(keys, O_CLOEXEC), 0);
	CHECK_EQ(pipe2(screen, O_CLOEXEC), 0);
	config.flags = PV_PORT_CONSOLE | PV_PORT_ESCAPE;
	config.in_fd = keys[0];
	config.out_fd = screen[1];
	config.quit_fd = quit_fd;
	make(&b, &config, keys[1], keys[0]);
	greet(&b, true, true);
	write_all(keys[1], typed, strlen(typed));
	expect_input(&b, seen);
	CHECK_EQ(eventfd_read(quit_fd, &asked), 0);
	CHECK_EQ(asked, 1);
	/* A buffer of one byte, and a prefix from before. */
	write_all(keys[1], "\001", 1);
	write_all(keys[1], "h.", 2);
	expect_input(&b, ".");
	read_all(screen[0], help, 2);
	CHECK_EQ(memcmp(help, "\r\n", 2), 0);
	unmake(&b);
	close(screen[0]);
	close(screen[1]);
	close(quit_fd);
}

static void test_a_buffer_with_room_for_one_key(void)
{
	struct pv_port_config config = NOBODY;
	struct bench b;
	uint32_t length;
	int keys[2];

	CHECK_EQ(pipe2(keys, O_CLOEXEC), 0);
	config.flags = PV_PORT_ESCAPE;
	config.in_fd = keys[0];
	make(&b, &config, keys[1], keys[0]);
	greet(&b, false, true);
	write_all(keys[1], "\001zk", 3);
	add(&b.queues[IN], NULL, 1, PV_DESC_WRITE);
	CHECK_EQ(*take(&b.queues[IN], &length), 1);
	CHECK_EQ(length, 1);
	add(&b.queues[IN], NULL, 1, PV_DESC_WRITE);
	CHECK_EQ(*take(&b.queues[IN], &length), 'k');
	CHECK_EQ(counter(&b, PV_PORT_BYTES_IN), 2);
	unmake(&b);
}

/* A prefix that is held back has its place before what comes with the next read. */
static void test_a_prefix_comes_with_the_next_key(void)
{
	struct pv_port_config config = NOBODY;
	struct bench b;
	uint32_t length;
	int keys[2], left;

	CHECK_EQ(pipe2(keys, O_CLOEXEC), 0);
	config.flags = PV_PORT_ESCAPE;
	config.in_fd = keys[0];
	make(&b, &config, keys[1], keys[0]);
	greet(&b, false, true);
	add(&b.queues[IN], NULL, 2, PV_DESC_WRITE);
	write_all(keys[1], "\001", 1);
	WAIT_FOR(ioctl(keys[0], FIONREAD, &left) == 0 && left == 0);
	write_all(keys[1], "zk", 2);
	CHECK_EQ(memcmp(take(&b.queues[IN], &length), "\001z", 2), 0);
	CHECK_EQ(length, 2);
	add(&b.queues[IN], NULL, 2, PV_DESC_WRITE);
	CHECK_EQ(*take(&b.queues[IN], &length), 'k');
	CHECK_EQ(length, 1);
	unmake(&b);
}

static int open_terminal(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios mode;

	CHECK(fd >= 0);
	CHECK_EQ(tcgetattr(fd, &mode), 0);
	cfmakeraw(&mode);
	CHECK_EQ(tcsetattr(fd, TCSANOW, &mode), 0);
	return fd;
}

static int open_pty(char *path, size_t size)
{
	int fd = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

	CHECK(fd >= 0);
	CHECK_EQ(grantpt(fd), 0);
	CHECK_EQ(unlockpt(fd), 0);
	CHECK_EQ(ptsname_r(fd, path, size), 0);
	/* Before the first time a master tells of nobody. */
	close(open_terminal(path));
	return fd;
}

static void test_people_come_to_a_pty_and_leave(void)
{
	struct pv_port_config config = NOBODY;
	struct bench b;
	char path[64], word[3];
	uint32_t length;

	config.in_fd = config.out_fd = open_pty(path, sizeof(path));
	make(&b, &config, -1, config.in_fd);
	greet(&b, false, false);
	for (unsigned i = 0; i < 3; i++) {
		int user;

		add(&b.queues[OUT], "lost", 4, 0);
		take(&b.queues[OUT], &length);
		CHECK_EQ(counter(&b, PV_PORT_DROPPED), 4 * (i + 1));
		CHECK_EQ(pv_ports_open(b.ports, 1), PV_PORT_GUEST);
		user = open_terminal(path);
		hear(&b, PORT_OPEN, 1);
		CHECK_EQ(pv_ports_open(b.ports, 1), PV_PORT_GUEST | PV_PORT_HOST_END);
		write_all(user, "in!", 3);
		expect_input(&b, "in!");
		add(&b.queues[OUT], "out", 3, 0);
		read_all(user, word, 3);
		CHECK_EQ(memcmp(word, "out", 3), 0);
		take(&b.queues[OUT], &length);
		/* Who waits for more finds that nobody is there, and waits for the next one. */
		add(&b.queues[IN], NULL, LENGTH, PV_DESC_WRITE);
		close(user);
		hear(&b, PORT_OPEN, 0);
	}
	unmake(&b);
}

/* The next that the driver is told of is this size. */
static void check_size(struct bench *b, int user, uint16_t columns, uint16_t rows)
{
	const uint8_t expected[12] = {1, 0, 0, 0, RESIZE, 0, 1, 0, (uint8_t)columns, 0, (uint8_t)rows, 0};
	const struct winsize size = {.ws_row = rows, .ws_col = columns};
	uint32_t length;

	CHECK_EQ(ioctl(user, TIOCSWINSZ, &size), 0);
	pv_ports_look(b->ports);
	add(&b->queues[CONTROL_IN], NULL, LENGTH, PV_DESC_WRITE);
	CHECK_EQ(memcmp(take(&b->queues[CONTROL_IN], &length), expected, sizeof(expected)), 0);
	CHECK_EQ(length, sizeof(expected));
}

static void test_the_size_of_a_terminal(void)
{
	const struct winsize none = {.ws_row = 43}, nor = {.ws_col = 132};
	struct pv_port_config config = NOBODY;
	struct bench b;
	char path[64];
	int user;

	config.in_fd = config.out_fd = open_pty(path, sizeof(path));
	config.flags = PV_PORT_CONSOLE;
	user = open_terminal(path);
	make(&b, &config, user, config.in_fd);
	greet(&b, true, true);
	check_size(&b, user, 132, 43);
	/* A terminal that does not say keeps what it has said. */
	add(&b.queues[CONTROL_IN], NULL, LENGTH, PV_DESC_WRITE);
	for (unsigned i = 0; i < 2; i++) {
		uint32_t length;

		CHECK_EQ(ioctl(user, TIOCSWINSZ, i ? &none : &nor), 0);
		pv_ports_look(b.ports);
		/* Who has sent this has looked before. */
		add(&b.queues[OUT], "x", 1, 0);
		take(&b.queues[OUT], &length);
	}
	check_size(&b, user, 80, 25);
	unmake(&b);
}

static void test_the_end_of_input_ends_that_alone(void)
{
	struct pv_port_config config = NOBODY;
	struct bench b;
	char word[4];
	uint32_t length;
	int in[2], out[2];

	CHECK_EQ(pipe2(in, O_CLOEXEC), 0);
	CHECK_EQ(pipe2(out, O_CLOEXEC), 0);
	config.in_fd = in[0];
	config.out_fd = out[1];
	make(&b, &config, -1, in[0]);
	greet(&b, false, true);
	write_all(in[1], "last", 4);
	close(in[1]);
	expect_input(&b, "last");
	add(&b.queues[OUT], "goes", 4, 0);
	read_all(out[0], word, 4);
	take(&b.queues[OUT], &length);
	/* Nor does a reader that leaves end anything but output. */
	close(out[0]);
	add(&b.queues[OUT], "lost", 4, 0);
	take(&b.queues[OUT], &length);
	CHECK_EQ(counter(&b, PV_PORT_DROPPED), 4);
	CHECK_EQ(counter(&b, PV_PORT_CLOSED), 0);
	unmake(&b);
	close(out[1]);
}

static void test_memory_and_nobody(void)
{
	struct pv_port_config config = NOBODY;
	struct pv_ringbuf *ring;
	struct bench b;
	uint8_t kept[16];
	uint32_t length;

	CHECK_EQ(pv_ringbuf_new(8, &ring), 0);
	config.out_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	config.ringbuf = ring;
	make(&b, &config, -1, config.out_fd);
	greet(&b, false, true);
	add(&b.queues[OUT], "kept by memory", 14, 0);
	take(&b.queues[OUT], &length);
	CHECK_EQ(pv_ringbuf_read(ring, kept, sizeof(kept)), 8);
	CHECK_EQ(memcmp(kept, "y memory", 8), 0);
	unmake(&b);
	pv_ringbuf_free(ring);

	config = (struct pv_port_config)NOBODY;
	make(&b, &config, -1, -1);
	greet(&b, false, true);
	add(&b.queues[OUT], "nobody", 6, 0);
	take(&b.queues[OUT], &length);
	CHECK_EQ(counter(&b, PV_PORT_DROPPED), 6);
	unmake(&b);
}

/* What fills a pipe that nobody reads: a port's waits, a console's does not for ever. */
static void test_a_console_has_patience_for_a_while(void)
{
	static const uint8_t nothing[LENGTH];
	struct pv_port_config config = NOBODY;
	struct bench b;
	uint32_t length;
	int out[2];

	CHECK_EQ(pipe2(out, O_CLOEXEC | O_NONBLOCK), 0);
	CHECK(fcntl(out[1], F_SETPIPE_SZ, LENGTH) >= LENGTH);
	config.out_fd = out[1];
	config.flags = PV_PORT_CONSOLE;
	make(&b, &config, out[0], out[1]);
	greet(&b, true, true);
	for (unsigned i = 0; i < SIZE; i++)
		add(&b.queues[OUT], nothing, LENGTH, 0);
	for (unsigned i = 0; i < SIZE; i++)
		take(&b.queues[OUT], &length);
	CHECK_EQ(counter(&b, PV_PORT_DROPPED) + counter(&b, PV_PORT_BYTES_OUT), SIZE * LENGTH);
	CHECK(counter(&b, PV_PORT_DROPPED) > 0);
	unmake(&b);
}

int main(void)
{
	RUN(test_keys_of_the_monitor);
	RUN(test_a_buffer_with_room_for_one_key);
	RUN(test_a_prefix_comes_with_the_next_key);
	RUN(test_people_come_to_a_pty_and_leave);
	RUN(test_the_size_of_a_terminal);
	RUN(test_the_end_of_input_ends_that_alone);
	RUN(test_memory_and_nobody);
	RUN(test_a_console_has_patience_for_a_while);
	return 0;
}
