/* A fuzz target: the input is a guest that writes to its serial port, and a host that connects to
 * it, types, keys of the monitor among that, listens, and leaves. Every fault that a sanitizer can
 * see, an endless loop, and a byte that is lost or made up ends the run.
 *
 *     make fuzz TARGET=console
 *
 * The first byte chooses the console; then come instructions, a byte and what it takes. */
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "console/thread.c"
#include "console/uart.h"
#include "fuzz/input.h"

enum { RBR_THR, REGISTERS = 8, PIECE = 4096, MUCH = 8 * PIECE };
#define FAR (UINT64_MAX / 2) /* a time that comes after all that is waited for */

struct bench {
	struct pv_console *console;
	struct pv_uart *uart;
	struct pv_ringbuf *ringbuf;
	int host; /* -1: nobody is connected */
	unsigned connections;
	bool is_heard; /* the console reads from somebody */
	bool has_left; /* who was connected has closed something */
	uint64_t put, said, heard;
};

/* There for all runs. */
static int listen_fd = -1;
static struct sockaddr_un address = {.sun_family = AF_UNIX};

static void make_listener(void)
{
	if (listen_fd >= 0)
		return;
	/* In the abstract name space, which needs no file. */
	(void)snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "pv-fuzz-%d", (int)getpid());
	listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	REQUIRE(bind(listen_fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	REQUIRE(listen(listen_fd, 4) == 0);
}

static void connect_host(struct bench *bench)
{
	bench->host = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	REQUIRE(bench->host >= 0);
	bench->connections++;
	/* As little as there may be, that it is full soon. */
	(void)setsockopt(bench->host, SOL_SOCKET, SO_RCVBUF, &(int){1}, sizeof(int));
	if (connect(bench->host, (struct sockaddr *)&address, sizeof(address)) < 0) {
		close(bench->host);
		bench->host = -1;
	}
}

static struct bench *bench_new(struct input *input)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	uint8_t choice = (uint8_t)take(input, 1);

	make_listener();
	REQUIRE(bench && pv_console_new(&bench->console) == 0);
	REQUIRE(pv_uart_new(-1, bench->console, &bench->uart) == 0);
	bench->host = -1;
	bench->console->flags = choice & 1 ? PV_CONSOLE_ESCAPE : 0;
	if (choice & 2) {
		REQUIRE(pv_ringbuf_new(1u << (1 + (choice >> 2 & 7)), &bench->ringbuf) == 0);
		REQUIRE(pv_stream_open(&bench->console->out, listen_fd, PV_STREAM_WRITE) == 0);
		bench->console->out.ringbuf = bench->ringbuf;
	} else {
		bench->console->listen_fd = listen_fd;
	}
	return bench;
}

static void bench_free(struct bench *bench)
{
	int fd;

	pv_stream_close(&bench->console->in);
	pv_stream_close(&bench->console->out);
	pv_uart_free(bench->uart);
	pv_console_free(bench->console);
	pv_ringbuf_free(bench->ringbuf);
	if (bench->host >= 0)
		close(bench->host);
	/* Who waits is of this run. */
	while (poll(&(struct pollfd){.fd = listen_fd, .events = POLLIN}, 1, 0) == 1) {
		fd = accept(listen_fd, NULL, NULL);
		if (fd >= 0)
			close(fd);
	}
	free(bench);
}

static void host_says(struct bench *bench, struct input *input)
{
	uint8_t words[64];
	size_t count = take(input, 1) % sizeof(words);
	ssize_t bytes;

	for (size_t i = 0; i < count; i++)
		words[i] = (uint8_t)take(input, 1);
	bytes = send(bench->host, words, count, MSG_DONTWAIT | MSG_NOSIGNAL);
	bench->said += bytes > 0 ? (uint64_t)bytes : 0;
}

static void host_says_much(struct bench *bench)
{
	static const uint8_t WORDS[MUCH] = "\001\001\001a\001b";
	ssize_t bytes = send(bench->host, WORDS, sizeof(WORDS), MSG_DONTWAIT | MSG_NOSIGNAL);

	bench->said += bytes > 0 ? (uint64_t)bytes : 0;
}

static void host_listens(struct bench *bench)
{
	uint8_t words[PIECE];
	ssize_t bytes;

	while ((bytes = recv(bench->host, words, sizeof(words), MSG_DONTWAIT)) > 0)
		bench->heard += (uint64_t)bytes;
}

static void host_acts(struct bench *bench, struct input *input, unsigned what)
{
	if (bench->host < 0) {
		connect_host(bench);
	} else if (what == 0) {
		host_says_much(bench);
	} else if (what == 1) {
		host_listens(bench);
	} else if (what == 2 && take(input, 1) % 4 == 0) {
		shutdown(bench->host, (int)(take(input, 1) % 3));
		bench->has_left = true;
	} else if (what == 3 && take(input, 1) % 4 == 0) {
		close(bench->host);
		bench->host = -1;
		bench->has_left = true;
	} else {
		host_says(bench, input);
	}
}

static void guest_writes(struct bench *bench, struct input *input)
{
	uint8_t choice = (uint8_t)take(input, 1);
	/* Few at a time as a rule: it is a byte after the other. */
	uint64_t count = choice < 250 ? choice : PV_CONSOLE_HALF + choice;

	for (uint64_t i = 0; i < count; i++)
		(void)pv_console_put(bench->console, (uint8_t)i);
	bench->put += count;
}

static void guest_accesses(struct bench *bench, struct input *input, uint16_t offset)
{
	uint8_t choice = (uint8_t)take(input, 1);

	if (offset != RBR_THR && choice & 1)
		pv_uart_write(bench->uart, offset, choice >> 1 & 0x7f);
	else
		(void)pv_uart_read(bench->uart, offset);
}

/* A turn of the console's thread that does not sleep. */
static void turn(struct bench *bench)
{
	struct pv_console *c = bench->console;
	struct pollfd polled[POLLED];

	transmit(c);
	tell_flushers(c);
	choose_events(c, polled);
	(void)choose_timeout(c, threshold(c));
	REQUIRE(poll(polled, POLLED, 0) >= 0);
	serve(c, polled);
}

/* Who stays is heard on; what the first who connected has said is in the input, or on its way
 * there. */
static void check_input(struct bench *bench, uint64_t bytes_in)
{
	bool was_heard = bench->is_heard;
	int unread;

	bench->is_heard = bench->console->in.fd >= 0;
	REQUIRE(bench->is_heard || !was_heard || bench->has_left);
	if (bench->console->flags || bench->connections != 1 || bench->console->in.fd < 0)
		return;
	REQUIRE(ioctl(bench->console->in.fd, FIONREAD, &unread) == 0);
	REQUIRE(bench->said == bytes_in + (uint64_t)unread);
}

static void check(struct bench *bench)
{
	struct pv_console_stats stats;
	uint64_t held = pv_ring_used(bench->console->output);

	pv_console_stats(bench->console, &stats);
	REQUIRE(bench->put == held + stats.bytes_out + stats.bytes_dropped + stats.bytes_discarded);
	/* A Ctrl-A that was held comes with the next byte. */
	REQUIRE(stats.bytes_in <= bench->said);
	check_input(bench, stats.bytes_in);
	REQUIRE(pv_ring_used(bench->console->input) <= stats.bytes_in);
	REQUIRE(bench->console->flags || bench->heard <= stats.bytes_out);
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);

	switch (code % 8) {
	case 0:
	case 1:
		host_acts(bench, input, code / 8 % 8);
		break;
	case 2:
		guest_writes(bench, input);
		break;
	case 3:
	case 4:
		guest_accesses(bench, input, code / 8 % REGISTERS);
		break;
	case 5:
		bench->console->now = code & 8 ? FAR : 0;
		break;
	default:
		for (unsigned i = 0; i <= code / 8 % 8; i++)
			turn(bench);
	}
	check(bench);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
