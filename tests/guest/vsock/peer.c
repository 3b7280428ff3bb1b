/* One end of stream connections, in a guest or on the host:
 *
 *     peer echo|sink|source ADDRESS [BYTES]    a server, of any number of clients one by one
 *     peer send|read|trips|many ADDRESS [N]    a client
 *
 * ADDRESS is vsock:CID:PORT, unix:PATH, or hybrid:PATH:PORT, a guest's port behind the Unix socket
 * of its monitor. `echo` says what it hears. `sink` reads to the end, and answers with the number
 * of bytes and "whole", or "broken" if they were not what `send` sends; so does `read` with what
 * `source` sends. `trips` makes N round trips of a byte each, `many` opens N connections at once.
 * The line that a client prints begins with the nanoseconds that it took; a server says "ready". */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define PERIOD 65521
#define BLOCK 65536
#define CLIENTS 1100

static uint8_t pattern[PERIOD + BLOCK], buffer[BLOCK];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void write_all(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = write(fd, (const char *)data + done, size - done);

		if (count < 0)
			die("write");
		done += (size_t)count;
	}
}

union address {
	struct sockaddr any;
	struct sockaddr_un un;
	struct sockaddr_vm vm;
};

static socklen_t parse(const char *text, union address *address)
{
	memset(address, 0, sizeof(*address));
	if (strncmp(text, "vsock:", 6) == 0) {
		char *port;

		address->vm.svm_family = AF_VSOCK;
		address->vm.svm_cid = (unsigned)strtoul(text + 6, &port, 10);
		address->vm.svm_port = (unsigned)strtoul(port + 1, NULL, 10);
		return sizeof(address->vm);
	}
	text = strchr(text, ':') + 1;
	address->un.sun_family = AF_UNIX;
	(void)snprintf(address->un.sun_path, sizeof(address->un.sun_path), "%s", text);
	return sizeof(address->un);
}

static int make_socket(const union address *address)
{
	int fd = socket(address->any.sa_family, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

static void greet(int fd, const char *port)
{
	char line[40];

	(void)snprintf(line, sizeof(line), "CONNECT %s\n", port);
	write_all(fd, line, strlen(line));
	do
		if (read(fd, line, 1) != 1)
			die("CONNECT");
	while (line[0] != '\n');
}

static int connect_to(const char *text)
{
	char copy[128], *port = NULL;
	union address address;
	socklen_t size;
	int fd;

	(void)snprintf(copy, sizeof(copy), "%s", text);
	if (strncmp(copy, "hybrid:", 7) == 0) {
		port = strrchr(copy, ':');
		*port++ = 0;
	}
	size = parse(copy, &address);
	fd = make_socket(&address);
	if (connect(fd, &address.any, size) < 0)
		die("connect");
	if (port)
		greet(fd, port);
	return fd;
}

static int listen_at(const char *text)
{
	union address address;
	socklen_t size = parse(text, &address);
	int fd;

	if (address.any.sa_family == AF_VSOCK)
		address.vm.svm_cid = VMADDR_CID_ANY;
	fd = make_socket(&address);
	if (bind(fd, &address.any, size) < 0 || listen(fd, CLIENTS) < 0)
		die("listen");
	puts("ready");
	fflush(stdout);
	return fd;
}

/* Read to the end; say how much it was, and whether it was what `send_bytes` sends. */
static int check(int fd, char *line, size_t size)
{
	uint64_t total = 0;
	bool whole = true;
	ssize_t count;

	while ((count = read(fd, buffer, sizeof(buffer))) > 0) {
		whole &= memcmp(buffer, pattern + total % PERIOD, (size_t)count) == 0;
		total += (uint64_t)count;
	}
	return snprintf(line, size, "%llu %s%s", (unsigned long long)total,
	                count == 0 && whole ? "whole" : "broken: ", count == 0 ? "" : strerror(errno));
}

static void send_bytes(int fd, uint64_t bytes)
{
	for (uint64_t done = 0; done < bytes;) {
		uint64_t left = bytes - done;

		write_all(fd, pattern + done % PERIOD, left < BLOCK ? left : BLOCK);
		done += left < BLOCK ? left : BLOCK;
	}
	shutdown(fd, SHUT_WR);
}

static void serve_one_by_one(int listener, bool is_source, uint64_t bytes)
{
	char line[64];
	int fd;

	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		if (is_source) {
			send_bytes(fd, bytes);
			(void)!read(fd, buffer, 1);
		} else {
			/* Who has gone wants no answer. */
			(void)!write(fd, line, (size_t)check(fd, line, sizeof(line)));
		}
		close(fd);
	}
}

/* The last client fills the place of one that goes. */
static void echo(int listener)
{
	static struct pollfd fds[CLIENTS + 1];
	nfds_t count = 1;

	fds[0] = (struct pollfd){listener, POLLIN, 0};
	while (poll(fds, count, -1) > 0) {
		for (nfds_t i = count - 1; i > 0; i--) {
			ssize_t bytes;

			if (!fds[i].revents)
				continue;
			bytes = read(fds[i].fd, buffer, sizeof(buffer));
			if (bytes > 0) {
				write_all(fds[i].fd, buffer, (size_t)bytes);
				continue;
			}
			close(fds[i].fd);
			fds[i] = fds[--count];
		}
		if (fds[0].revents && count <= CLIENTS)
			fds[count++] = (struct pollfd){accept(listener, NULL, NULL), POLLIN, 0};
	}
}

static void many(const char *address, uint32_t count)
{
	static int fds[CLIENTS];
	uint32_t value;

	for (uint32_t i = 0; i < count; i++)
		fds[i] = connect_to(address);
	for (uint32_t i = 0; i < count; i++)
		write_all(fds[i], &i, sizeof(i));
	for (uint32_t i = 0; i < count; i++)
		if (read(fds[i], &value, sizeof(value)) != sizeof(value) || value != i)
			die("echo");
}

static void trips(int fd, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		write_all(fd, buffer, 1);
		if (read(fd, buffer, 1) != 1)
			die("echo");
	}
}

static void be_client(const char *role, const char *address, uint64_t number)
{
	char line[64] = "";
	uint64_t start;
	int fd = -1;

	if (strcmp(role, "many") != 0)
		fd = connect_to(address);
	start = now_ns();
	if (strcmp(role, "many") == 0)
		many(address, (uint32_t)number);
	else if (strcmp(role, "trips") == 0)
		trips(fd, number);
	else if (strcmp(role, "read") == 0)
		check(fd, line, sizeof(line));
	else
		send_bytes(fd, number);
	if (strcmp(role, "send") == 0 && read(fd, line, sizeof(line) - 1) < 0)
		die("answer");
	printf("%llu %s\n", (unsigned long long)(now_ns() - start), line);
}

int main(int argc, char **argv)
{
	uint64_t number = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	const char *role = argc > 2 ? argv[1] : "";

	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < sizeof(pattern); i++)
		pattern[i] = (uint8_t)(i % PERIOD * 7 + i % PERIOD / 256);
	if (strcmp(role, "echo") == 0)
		echo(listen_at(argv[2]));
	else if (strcmp(role, "sink") == 0 || strcmp(role, "source") == 0)
		serve_one_by_one(listen_at(argv[2]), strcmp(role, "source") == 0, number);
	else
		be_client(role, argv[2], number);
	return 0;
}
