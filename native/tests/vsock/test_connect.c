/* A socket device: how connections begin, from either side, and how they end. */
#include <stdatomic.h>
#include <sys/syscall.h>

#include "tests/vsock/bench.h"

/* Why the next client is not accepted at once; 0: it is. */
static atomic_int refusal;
static atomic_int refusing_fd = -1;

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
	int number = fd == refusing_fd ? atomic_exchange(&refusal, 0) : 0;

	if (number == 0)
		return (int)syscall(SYS_accept4, fd, address, length, flags);
	errno = number;
	return -1;
}

static void test_a_client_of_the_host(void)
{
	struct bench b;
	struct packet packet;
	uint32_t port;
	char text[8];
	int fd;

	make(&b);
	fd = client(&b, 52, &port);
	write_all(fd, "to guest", 8);
	hear_any(&b, &packet);
	CHECK_EQ(packet.header.op, VIRTIO_VSOCK_OP_RW);
	CHECK_EQ(packet.header.buf_alloc, PV_VSOCK_CREDIT_LARGE);
	CHECK_EQ(packet.header.len, 8);
	CHECK_EQ(memcmp(packet.data, "to guest", 8), 0);
	send_data(&b, 52, port, "to host!", 8, 8);
	read_all(fd, text, 8);
	CHECK_EQ(memcmp(text, "to host!", 8), 0);
	close(fd);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_SHUTDOWN, 52).flags, BOTH);
	say(&b, VIRTIO_VSOCK_OP_RST, 52, port);
	CHECK_EQ(stats_of(&b).of_host, 1);
	WAIT_FOR(stats_of(&b).ended == 1);
	CHECK_EQ(stats_of(&b).bytes_in, 8);
	CHECK_EQ(stats_of(&b).bytes_out, 8);
	/* The port is free again. */
	close(client(&b, 52, &port));
	unmake(&b);
}

/* What a client says before it is told OK belongs to the guest. */
static void test_a_client_that_does_not_wait(void)
{
	struct bench b;
	struct packet packet;
	uint32_t port;
	int fd;

	make(&b);
	fd = ask(&b, "CONNECT 1\nCONNECT 2\n");
	shutdown(fd, SHUT_WR);
	port = hear(&b, VIRTIO_VSOCK_OP_REQUEST, 1).src_port;
	say(&b, VIRTIO_VSOCK_OP_RESPONSE, 1, port);
	hear_any(&b, &packet);
	CHECK_EQ(packet.header.len, 10);
	CHECK_EQ(memcmp(packet.data, "CONNECT 2\n", 10), 0);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_SHUTDOWN, 1).flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
	check_line(fd, port);
	close(fd);
	unmake(&b);
}

static void test_the_guest_refuses(void)
{
	struct bench b;
	uint32_t port;
	int fd;

	make(&b);
	fd = ask(&b, "CONNECT 4294967294\n");
	port = hear(&b, VIRTIO_VSOCK_OP_REQUEST, 4294967294).src_port;
	say(&b, VIRTIO_VSOCK_OP_RST, 4294967294, port);
	check_closed(fd);
	close(fd);
	CHECK_EQ(stats_of(&b).refused, 1);
	/* One that goes before the guest has answered. */
	fd = ask(&b, "CONNECT 5\n");
	port = hear(&b, VIRTIO_VSOCK_OP_REQUEST, 5).src_port;
	close(fd);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_RST, 5).src_port, port);
	say(&b, VIRTIO_VSOCK_OP_RESPONSE, 5, port);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_RST, 5).src_port, port);
	unmake(&b);
}

static void test_lines_that_are_none(void)
{
	static const char *const LINES[] = {
		"\n", "CONNECT\n", "CONNECT \n", "CONNECT -1\n", "CONNECT 1x\n", "CONNECT  1\n",
		"connect 1\n", "CONNECT 4294967295\n", "CONNECT 4294967296\n",
		"CONNECT 99999999999\n", "GET / HTTP/1.1 and so on and so forth",
		"CONNECT 00000000000000000000000000000001\n",
	};
	struct bench b;
	int fd;

	make(&b);
	for (unsigned i = 0; i < sizeof(LINES) / sizeof(LINES[0]); i++) {
		fd = ask(&b, LINES[i]);
		check_closed(fd);
		close(fd);
		CHECK_EQ(stats_of(&b).refused, i + 1);
	}
	/* Half a line, and no more. */
	fd = ask(&b, "CONNECT 1");
	shutdown(fd, SHUT_WR);
	check_closed(fd);
	close(fd);
	/* A line in two halves. */
	fd = ask(&b, "CONNE");
	write_all(fd, "CT 9\n", 5);
	hear(&b, VIRTIO_VSOCK_OP_REQUEST, 9);
	close(fd);
	unmake(&b);
}

static void test_silent_clients_make_room(void)
{
	int fds[PV_VSOCK_GREETERS];
	struct bench b;
	uint32_t port;
	int fd;

	make(&b);
	for (unsigned i = 0; i < PV_VSOCK_GREETERS; i++)
		fds[i] = connect_to(b.path);
	fd = client(&b, 1, &port);
	/* The one that was silent for the longest time has gone. */
	check_closed(fds[0]);
	CHECK(!readable(fds[PV_VSOCK_GREETERS - 1], 0));
	for (unsigned i = 0; i < PV_VSOCK_GREETERS; i++)
		close(fds[i]);
	close(fd);
	unmake(&b);
}

/* One that cannot be accepted now, for want of a descriptor, is when there may be one again. */
static void test_clients_that_cannot_be_accepted_at_once(void)
{
	static const int NUMBERS[] = {EINTR, ECONNABORTED, EMFILE};
	struct bench b;
	uint32_t port;
	int fds[3];

	make(&b);
	refusing_fd = b.listen_fd;
	for (unsigned i = 0; i < 3; i++) {
		atomic_store(&refusal, NUMBERS[i]);
		fds[i] = client(&b, 10 + i, &port);
		CHECK_EQ(atomic_load(&refusal), 0);
	}
	unmake(&b);
	refusing_fd = -1;
	for (unsigned i = 0; i < 3; i++)
		close(fds[i]);
}

static void test_the_guest_connects(void)
{
	struct bench b;
	struct packet packet;
	char text[5];
	int listener, fd;

	make(&b);
	listener = server(&b, 1024, 4);
	say(&b, VIRTIO_VSOCK_OP_REQUEST, 77, 1024);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_RESPONSE, 77).src_port, 1024);
	CHECK(readable(listener, 10000));
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	send_data(&b, 77, 1024, "hello", 5, 0);
	read_all(fd, text, 5);
	CHECK_EQ(memcmp(text, "hello", 5), 0);
	write_all(fd, "world", 5);
	hear_any(&b, &packet);
	CHECK_EQ(memcmp(packet.data, "world", 5), 0);
	/* The guest closes: what it gets is the answer to that. */
	shut(&b, 77, 1024, BOTH);
	hear(&b, VIRTIO_VSOCK_OP_RST, 77);
	check_closed(fd);
	close(fd);
	CHECK_EQ(stats_of(&b).of_guest, 1);
	/* Nobody listens. */
	say(&b, VIRTIO_VSOCK_OP_REQUEST, 77, 1025);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_RST, 77).src_port, 1025);
	end_server(&b, listener, 1024);
	unmake(&b);
}

/* A server whose backlog is full is asked again, until there is room or the time is over. */
static void test_a_busy_server(void)
{
	struct bench b;
	int listener, fds[3];

	make(&b);
	listener = server(&b, 9, 0);
	for (uint32_t port = 1; port <= 3; port++)
		say(&b, VIRTIO_VSOCK_OP_REQUEST, port, 9);
	hear(&b, VIRTIO_VSOCK_OP_RESPONSE, 1);
	for (unsigned i = 0; i < 3; i++) {
		CHECK(readable(listener, 10000));
		fds[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		CHECK(fds[i] >= 0);
	}
	WAIT_FOR(stats_of(&b).of_guest == 3);
	for (uint32_t port = 4; port <= 5; port++)
		say(&b, VIRTIO_VSOCK_OP_REQUEST, port, 9);
	WAIT_FOR(stats_of(&b).refused == 1);
	for (unsigned i = 0; i < 3; i++)
		close(fds[i]);
	end_server(&b, listener, 9);
	unmake(&b);
}

static void test_half_closed_by_the_host(void)
{
	struct bench b;
	uint32_t port;
	char text[4];
	int fd;

	make(&b);
	fd = client(&b, 8, &port);
	shutdown(fd, SHUT_WR);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_SHUTDOWN, 8).flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
	send_data(&b, 8, port, "late", 4, 0);
	read_all(fd, text, 4);
	CHECK_EQ(memcmp(text, "late", 4), 0);
	/* Then the guest, and nothing is open any more. */
	shut(&b, 8, port, VIRTIO_VSOCK_SHUTDOWN_SEND);
	check_closed(fd);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_SHUTDOWN, 8).flags, BOTH);
	close(fd);
	/* The guest takes its time, and closes by itself. */
	shut(&b, 8, port, BOTH);
	hear(&b, VIRTIO_VSOCK_OP_RST, 8);
	CHECK_EQ(stats_of(&b).ended, 1);
	unmake(&b);
}

static void test_half_closed_by_the_guest(void)
{
	struct bench b;
	struct packet packet;
	uint32_t port;
	int fd;

	make(&b);
	fd = client(&b, 8, &port);
	send_data(&b, 8, port, "last", 4, 0);
	shut(&b, 8, port, VIRTIO_VSOCK_SHUTDOWN_SEND);
	CHECK(readable(fd, 10000));
	read_all(fd, packet.data, 4);
	check_closed(fd);
	write_all(fd, "answer", 6);
	hear_any(&b, &packet);
	CHECK_EQ(memcmp(packet.data, "answer", 6), 0);
	/* What the guest has shut it may not use. */
	send_data(&b, 8, port, "more", 4, 0);
	hear(&b, VIRTIO_VSOCK_OP_RST, 8);
	close(fd);
	/* One that takes nothing any more. */
	fd = client(&b, 8, &port);
	shut(&b, 8, port, VIRTIO_VSOCK_SHUTDOWN_RCV);
	WAIT_FOR(send(fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	send_data(&b, 8, port, "still", 5, 0);
	read_all(fd, packet.data, 5);
	close(fd);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_SHUTDOWN, 8).flags, BOTH);
	unmake(&b);
}

/* The host closes while the guest sends. */
static void test_the_host_has_gone(void)
{
	struct bench b;
	struct packet packet;
	uint32_t port;
	int fd;

	make(&b);
	fd = client(&b, 8, &port);
	shutdown(fd, SHUT_RD);
	send_data(&b, 8, port, "lost", 4, 0);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_SHUTDOWN, 8).flags, VIRTIO_VSOCK_SHUTDOWN_RCV);
	CHECK_EQ(stats_of(&b).dropped, 4);
	write_all(fd, "heard", 5);
	hear_any(&b, &packet);
	CHECK_EQ(memcmp(packet.data, "heard", 5), 0);
	close(fd);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_SHUTDOWN, 8).flags, BOTH);
	send_data(&b, 8, port, "lost", 4, 0);
	WAIT_FOR(stats_of(&b).dropped == 8);
	CHECK_EQ(stats_of(&b).malformed, 0);
	unmake(&b);
}

static void test_connections_end_with_the_activation(void)
{
	struct bench b;
	uint32_t port;
	int listener, fds[3];

	make(&b);
	listener = server(&b, 9, 4);
	fds[0] = client(&b, 1, &port);
	fds[1] = ask(&b, "CONNECT 2\n");
	hear(&b, VIRTIO_VSOCK_OP_REQUEST, 2);
	say(&b, VIRTIO_VSOCK_OP_REQUEST, 3, 9);
	hear(&b, VIRTIO_VSOCK_OP_RESPONSE, 3);
	fds[2] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	stop(&b);
	for (unsigned i = 0; i < 3; i++) {
		check_closed(fds[i]);
		close(fds[i]);
	}
	/* Who comes meanwhile waits for the next driver. */
	fds[0] = ask(&b, "CONNECT 4\n");
	start(&b);
	hear(&b, VIRTIO_VSOCK_OP_REQUEST, 4);
	close(fds[0]);
	CHECK_EQ(stats_of(&b).ended, 2);
	end_server(&b, listener, 9);
	unmake(&b);
}

static void test_what_cannot_be_is_refused(void)
{
	char path[PV_VSOCK_PATH_MAX + 2];
	struct pv_vsock_config config = {CID, 0, "", 1};
	struct pv_vsock *vsock;

	CHECK_EQ(pv_vsock_new(&config, &vsock), -EINVAL);
	memset(path, 'p', sizeof(path));
	path[sizeof(path) - 1] = 0;
	config.path = path;
	CHECK_EQ(pv_vsock_new(&config, &vsock), -EINVAL);
	config.path = "p";
	config.connections = 0;
	CHECK_EQ(pv_vsock_new(&config, &vsock), -EINVAL);
	config.connections = PV_VSOCK_CONNECTIONS + 1;
	CHECK_EQ(pv_vsock_new(&config, &vsock), -EINVAL);
	CHECK(!vsock);
}

int main(void)
{
	RUN(test_a_client_of_the_host);
	RUN(test_a_client_that_does_not_wait);
	RUN(test_the_guest_refuses);
	RUN(test_lines_that_are_none);
	RUN(test_silent_clients_make_room);
	RUN(test_clients_that_cannot_be_accepted_at_once);
	RUN(test_the_guest_connects);
	RUN(test_a_busy_server);
	RUN(test_half_closed_by_the_host);
	RUN(test_half_closed_by_the_guest);
	RUN(test_the_host_has_gone);
	RUN(test_connections_end_with_the_activation);
	RUN(test_what_cannot_be_is_refused);
	return 0;
}
