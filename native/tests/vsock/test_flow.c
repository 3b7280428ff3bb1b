/* A socket device: credit both ways, many connections, slow ones, and packets that break rules. */
#include "tests/vsock/bench.h"

enum { BULK = 4 << 20, MANY = 1000 };

static uint8_t sent[BULK], got[BULK];

static void fill_sent(void)
{
	for (size_t i = 0; i < BULK; i++)
		sent[i] = (uint8_t)(i * 7 + i / 4096);
}

static void set_nonblocking(int fd)
{
	CHECK_EQ(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
}

/* Both directions at once, each with the credit that its end has. */
static void test_bulk_both_ways(void)
{
	static uint8_t received[BULK];
	size_t out = 0, in = 0, written = 0, read_so_far = 0;
	uint32_t port, room = PV_VSOCK_CREDIT_LARGE, forwarded = 0;
	struct packet packet;
	struct bench b;
	int fd;

	make(&b);
	fill_sent();
	fd = client(&b, 5, &port);
	set_nonblocking(fd);
	while (in < BULK || read_so_far < BULK) {
		ssize_t bytes = write(fd, sent + written, BULK - written);

		written += bytes > 0 ? (size_t)bytes : 0;
		bytes = read(fd, received + read_so_far, BULK - read_so_far);
		read_so_far += bytes > 0 ? (size_t)bytes : 0;
		while (try_hear(&b, &packet)) {
			CHECK_EQ(packet.header.src_port, port);
			room = packet.header.buf_alloc;
			forwarded = packet.header.fwd_cnt;
			CHECK(in + packet.header.len <= BULK);
			memcpy(got + in, packet.data, packet.header.len);
			in += packet.header.len;
		}
		if (out < BULK && out - forwarded + 4000 <= room) {
			uint32_t length = BULK - out < 4000 ? (uint32_t)(BULK - out) : 4000;

			send_data(&b, 5, port, sent + out, length, (uint32_t)in);
			out += length;
		}
	}
	CHECK_EQ(memcmp(got, sent, BULK), 0);
	CHECK_EQ(memcmp(received, sent, BULK), 0);
	CHECK_EQ(stats_of(&b).dropped, 0);
	CHECK_EQ(stats_of(&b).malformed, 0);
	close(fd);
	unmake(&b);
}

static void say_credit(struct bench *b, uint32_t port, uint32_t room, uint32_t forwarded)
{
	struct virtio_vsock_hdr update = header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 5, port);

	update.buf_alloc = room;
	update.fwd_cnt = forwarded;
	send_raw(b, &update, sizeof(update));
}

static void hear_bytes(struct bench *b, uint32_t count)
{
	struct packet packet;

	while (count > 0) {
		hear_any(b, &packet);
		CHECK_EQ(packet.header.op, VIRTIO_VSOCK_OP_RW);
		CHECK(packet.header.len <= count);
		count -= packet.header.len;
	}
}

static void test_no_more_than_the_credit_of_the_driver(void)
{
	struct bench b;
	uint32_t port;
	int fd;

	make(&b);
	fd = client(&b, 5, &port);
	say_credit(&b, port, 1000, 0);
	/* It was taken once this is answered. */
	say(&b, VIRTIO_VSOCK_OP_RST, 99, 99);
	say(&b, VIRTIO_VSOCK_OP_RW, 99, 99);
	hear(&b, VIRTIO_VSOCK_OP_RST, 99);
	write_all(fd, sent, 3000);
	hear_bytes(&b, 1000);
	/* The device asks, after a while. */
	hear(&b, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 5);
	say_credit(&b, port, 1000, 400);
	hear_bytes(&b, 400);
	/* One that came too late takes nothing back; less room than is in use is none. */
	say_credit(&b, port, 1500, 100);
	hear_bytes(&b, 500);
	say_credit(&b, port, 100, 1500);
	say_credit(&b, port, 2000, 1900);
	hear_bytes(&b, 1100);
	CHECK(stats_of(&b).stalls >= 3);
	/* More than was sent cannot have been forwarded. */
	say_credit(&b, port, 1000, 3001);
	hear(&b, VIRTIO_VSOCK_OP_RST, 5);
	check_closed(fd);
	close(fd);
	unmake(&b);
}

/* However many buffers a message took, the next one takes those that it needs. */
static void test_messages_of_changing_sizes_are_whole(void)
{
	static const uint32_t SIZES[] = {1, 200000, 1, 1, 1, 1, 1, 1, 1, 1, DATA_MAX, DATA_MAX + 1,
	                                 2 * DATA_MAX, 1, 60000, 60000, 5, 130000, 3 * DATA_MAX};
	uint32_t port, at = 0, heard = 0;
	struct packet packet;
	struct bench b;
	int fd;

	make(&b);
	fill_sent();
	fd = client(&b, 5, &port);
	for (size_t i = 0; i < sizeof(SIZES) / sizeof(SIZES[0]); i++) {
		for (uint32_t end = at + SIZES[i], most; at < end; at += most) {
			most = end - at < 50000 ? end - at : 50000; /* what the socket holds */
			write_all(fd, sent + at, most);
			for (; heard < at + most; heard += packet.header.len) {
				hear_any(&b, &packet);
				CHECK_EQ(packet.header.op, VIRTIO_VSOCK_OP_RW);
				CHECK(packet.header.len <= at + most - heard);
				CHECK_EQ(memcmp(packet.data, sent + heard, packet.header.len), 0);
			}
		}
		say_credit(&b, port, CREDIT, heard);
	}
	close(fd);
	unmake(&b);
}

/* The driver's bytes stay here while nobody reads them, up to its credit. */
static void test_no_more_than_the_credit_of_the_device(void)
{
	uint32_t port, taken = 0, out = 0, forwarded = 0;
	struct packet packet;
	struct bench b;
	int fd;

	make(&b);
	fill_sent();
	fd = client(&b, 5, &port);
	for (;;) {
		while (try_hear(&b, &packet))
			forwarded = packet.header.fwd_cnt;
		if (out - forwarded + 4000 <= PV_VSOCK_CREDIT_LARGE) {
			send_data(&b, 5, port, sent + out, 4000, 0);
			out += 4000;
		} else if (stats_of(&b).packets_out == 1 + out / 4000) {
			/* All of it was looked at, and the last news are heard. */
			if (!try_hear(&b, &packet))
				break;
			forwarded = packet.header.fwd_cnt;
		}
	}
	CHECK_EQ(stats_of(&b).blocked, 1);
	/* Asked, the device tells what it has. */
	say(&b, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 5, port);
	CHECK(hear(&b, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 5).fwd_cnt - forwarded < 100000);
	while (taken < out) {
		ssize_t bytes = read(fd, got + taken, out - taken);

		CHECK(bytes > 0);
		taken += (uint32_t)bytes;
	}
	CHECK_EQ(memcmp(got, sent, out), 0);
	/* All of it is forwarded now, and the driver is told. */
	do
		hear_any(&b, &packet);
	while (packet.header.fwd_cnt + PV_VSOCK_CREDIT_LARGE / 2 < out);
	/* Now more than it may. */
	for (unsigned i = 0; !try_hear(&b, &packet) || packet.header.op != VIRTIO_VSOCK_OP_RST; i++) {
		CHECK(i < 1000);
		send_data(&b, 5, port, sent, 4000, 0);
	}
	CHECK(stats_of(&b).malformed >= 1);
	close(fd);
	unmake(&b);
}

/* What the device has forwarded, which it may have told of by itself before. */
static uint32_t ask_forwarded(struct bench *b, uint32_t port)
{
	struct packet packet;

	say(b, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 5, port);
	packet.header = hear(b, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 5);
	while (try_hear(b, &packet))
		CHECK_EQ(packet.header.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	return packet.header.fwd_cnt;
}

/* Send all that the device has room for; what it has after. */
static uint32_t fill_up(struct bench *b, uint32_t port, uint32_t out)
{
	uint32_t left;

	while ((left = PV_VSOCK_CREDIT_LARGE - (out - ask_forwarded(b, port))) > 0) {
		left = left < 4000 ? left : 4000;
		send_data(b, 5, port, sent + out, left, 0);
		out += left;
	}
	return out;
}

/* It holds as much as it says, to the last byte, and what comes later goes behind that. */
static void test_all_of_the_credit_of_the_device(void)
{
	uint32_t port, out;
	struct bench b;
	int fd;

	make(&b);
	fill_sent();
	fd = client(&b, 5, &port);
	out = fill_up(&b, port, 0);
	read_all(fd, got, 150000);
	out = fill_up(&b, port, out);
	read_all(fd, got + 150000, out - 150000);
	CHECK_EQ(memcmp(got, sent, out), 0);
	CHECK_EQ(stats_of(&b).malformed, 0);
	close(fd);
	unmake(&b);
}

/* The guest closes when all is sent, and does not wait: it is the host's all the same. */
static void test_what_was_sent_before_the_end_arrives(void)
{
	uint32_t port, out = 0, taken = 0;
	struct bench b;
	int fd;

	make(&b);
	fill_sent();
	fd = client(&b, 5, &port);
	for (; out < 240000; out += 4000)
		send_data(&b, 5, port, sent + out, 4000, 0);
	shut(&b, 5, port, BOTH);
	say(&b, VIRTIO_VSOCK_OP_RST, 5, port);
	WAIT_FOR(stats_of(&b).ended == 1);
	while (taken < out) {
		ssize_t bytes = read(fd, got + taken, out - taken);

		CHECK(bytes > 0);
		taken += (uint32_t)bytes;
	}
	check_closed(fd);
	CHECK_EQ(memcmp(got, sent, out), 0);
	close(fd);
	unmake(&b);
}

/* It breaks off instead: what nobody has taken yet is lost. */
static void test_a_guest_that_breaks_off(void)
{
	uint32_t port;
	struct bench b;
	int fd;

	make(&b);
	fd = client(&b, 5, &port);
	for (unsigned i = 0; i < 60; i++)
		send_data(&b, 5, port, sent, 4000, 0);
	say(&b, VIRTIO_VSOCK_OP_RST, 5, port);
	WAIT_FOR(stats_of(&b).ended == 1);
	CHECK_EQ(stats_of(&b).blocked, 1);
	CHECK(stats_of(&b).dropped > 0);
	close(fd);
	unmake(&b);
}

static void allow_files(void)
{
	struct rlimit limit;

	CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = limit.rlim_max;
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
	CHECK(limit.rlim_cur > 2 * MANY + 100);
}

static void test_a_thousand_connections_at_once(void)
{
	static uint32_t ports[MANY];
	static int fds[MANY];
	struct packet packet;
	struct bench b;
	int listener;
	uint32_t value;

	allow_files();
	make(&b);
	listener = server(&b, 9, 64);
	for (uint32_t i = 0; i < MANY; i++) {
		if (i % 2 == 0) {
			fds[i] = client(&b, i, &ports[i]);
			continue;
		}
		say(&b, VIRTIO_VSOCK_OP_REQUEST, i, ports[i] = 9);
		hear(&b, VIRTIO_VSOCK_OP_RESPONSE, i);
		fds[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		CHECK(fds[i] >= 0);
	}
	for (uint32_t i = 0; i < MANY; i++)
		write_all(fds[i], &i, sizeof(i));
	/* Each is echoed, whatever the order they come in. */
	for (uint32_t i = 0; i < MANY; i++) {
		hear_any(&b, &packet);
		CHECK_EQ(packet.header.len, sizeof(value));
		memcpy(&value, packet.data, sizeof(value));
		CHECK_EQ(packet.header.dst_port, value);
		send_data(&b, value, ports[value], &value, sizeof(value), sizeof(value));
	}
	for (uint32_t i = 0; i < MANY; i++) {
		read_all(fds[i], &value, sizeof(value));
		CHECK_EQ(value, i);
		close(fds[i]);
	}
	for (uint32_t i = 0; i < MANY; i++) {
		hear_any(&b, &packet);
		CHECK_EQ(packet.header.op, VIRTIO_VSOCK_OP_SHUTDOWN);
		say(&b, VIRTIO_VSOCK_OP_RST, packet.header.dst_port, packet.header.src_port);
	}
	WAIT_FOR(stats_of(&b).ended == MANY);
	/* Their memory is there for those that come now. */
	fds[0] = ask(&b, "CONNECT 5\n");
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_REQUEST, 5).buf_alloc, PV_VSOCK_CREDIT_LARGE);
	close(fds[0]);
	end_server(&b, listener, 9);
	unmake(&b);
}

/* The table has an end: clients wait for a place, and the guest is refused. */
static void test_a_table_that_is_full(void)
{
	struct bench b;
	uint32_t port;
	int listener, fds[4];

	make_device(&b, 3);
	start(&b);
	listener = server(&b, 9, 4);
	for (uint32_t i = 0; i < 3; i++)
		fds[i] = client(&b, i, &port);
	say(&b, VIRTIO_VSOCK_OP_REQUEST, 7, 9);
	hear(&b, VIRTIO_VSOCK_OP_RST, 7);
	fds[3] = ask(&b, "CONNECT 4\n");
	say(&b, VIRTIO_VSOCK_OP_RST, 2, port);
	hear(&b, VIRTIO_VSOCK_OP_REQUEST, 4);
	for (unsigned i = 0; i < 4; i++)
		close(fds[i]);
	end_server(&b, listener, 9);
	unmake(&b);
}

static void test_a_slow_host_keeps_nobody(void)
{
	uint32_t slow_port, port;
	struct packet packet;
	struct bench b;
	char text[4];
	int slow, fd;

	make(&b);
	slow = client(&b, 1, &slow_port);
	fd = client(&b, 2, &port);
	while (stats_of(&b).blocked == 0) {
		send_data(&b, 1, slow_port, sent, 4000, 0);
		while (try_hear(&b, &packet))
			;
	}
	/* A driver that has no credit for the slow one does not keep the other either. */
	send_data(&b, 2, port, "fast", 4, 0);
	read_all(fd, text, 4);
	CHECK_EQ(memcmp(text, "fast", 4), 0);
	close(slow);
	close(fd);
	unmake(&b);
}

/* Of junk a bounded number of answers waits for buffers, and then the junk itself does. */
static void test_a_driver_without_buffers(void)
{
	struct packet packet;
	struct bench b;
	uint32_t answered = 0, asked = 0;

	make_device(&b, 100);
	start_without_buffers(&b);
	for (; asked < PV_VSOCK_REPLIES + SIZE; asked++)
		say(&b, VIRTIO_VSOCK_OP_RW, asked, 1);
	WAIT_FOR(stats_of(&b).packets_out == PV_VSOCK_REPLIES);
	CHECK_EQ(stats_of(&b).packets_in, 0);
	for (unsigned i = 0; i < SIZE; i++)
		add(&b.queues[RX], LENGTH, PV_DESC_WRITE);
	for (; answered < asked; answered++) {
		hear_any(&b, &packet);
		CHECK_EQ(packet.header.op, VIRTIO_VSOCK_OP_RST);
		CHECK_EQ(packet.header.dst_port, answered);
	}
	unmake(&b);
}

/* Packets that cannot be of a connection: each is answered by an RST, but for an RST. */
static void test_packets_that_are_none(void)
{
	struct virtio_vsock_hdr wrong[9];
	struct packet packet;
	struct bench b;
	uint32_t port;
	char text[2];
	int fd;

	make(&b);
	fd = client(&b, 5, &port);
	for (unsigned i = 0; i < 9; i++)
		wrong[i] = header(VIRTIO_VSOCK_OP_RW, 5, port);
	wrong[0].type = VIRTIO_VSOCK_TYPE_SEQPACKET;
	wrong[1].type = 0;
	wrong[2].op = VIRTIO_VSOCK_OP_INVALID;
	wrong[3].op = VIRTIO_VSOCK_OP_CREDIT_REQUEST + 1;
	wrong[4].src_cid = CID + 1;
	wrong[5].src_cid |= UINT64_C(1) << 32;
	wrong[6].dst_cid = 1;
	wrong[7].dst_cid |= UINT64_C(1) << 63;
	wrong[8].dst_port++;
	for (unsigned i = 0; i < 9; i++) {
		send_raw(&b, &wrong[i], sizeof(wrong[i]));
		hear_any(&b, &packet);
		CHECK_EQ(packet.header.op, VIRTIO_VSOCK_OP_RST);
		CHECK_EQ(packet.header.type, wrong[i].type);
		CHECK_EQ(packet.header.src_port, wrong[i].dst_port);
		CHECK_EQ(packet.header.dst_port, 5);
		/* With these two it would be the connection's. */
		if (i == 2 || i == 3)
			continue;
		wrong[i].op = VIRTIO_VSOCK_OP_RST;
		send_raw(&b, &wrong[i], sizeof(wrong[i]));
	}
	CHECK(stats_of(&b).malformed >= 8);
	/* The connection that they were not of is as it was. */
	send_data(&b, 5, port, "ok", 2, 0);
	read_all(fd, text, 2);
	close(fd);
	CHECK_EQ(hear(&b, VIRTIO_VSOCK_OP_SHUTDOWN, 5).flags, BOTH);
	unmake(&b);
}

static void test_operations_out_of_place(void)
{
	static const uint16_t OPERATIONS[] = {VIRTIO_VSOCK_OP_REQUEST, VIRTIO_VSOCK_OP_RESPONSE};
	struct bench b;
	uint64_t starved;
	uint32_t port;
	int fd;

	make(&b);
	for (unsigned i = 0; i < 2; i++) {
		fd = client(&b, 5, &port);
		say(&b, OPERATIONS[i], 5, port);
		hear(&b, VIRTIO_VSOCK_OP_RST, 5);
		check_closed(fd);
		close(fd);
	}
	/* An answer that is none. */
	fd = ask(&b, "CONNECT 6\n");
	port = hear(&b, VIRTIO_VSOCK_OP_REQUEST, 6).src_port;
	say(&b, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 6, port);
	hear(&b, VIRTIO_VSOCK_OP_RST, 6);
	check_closed(fd);
	close(fd);
	CHECK_EQ(stats_of(&b).malformed, 3);
	stop(&b);
	/* And one to what it was not asked yet; that port is the host's next. */
	start_without_buffers(&b);
	starved = stats_of(&b).starved;
	fd = ask(&b, "CONNECT 7\n");
	WAIT_FOR(stats_of(&b).starved > starved);
	say(&b, VIRTIO_VSOCK_OP_RESPONSE, 7, port + 1);
	WAIT_FOR(stats_of(&b).malformed == 4);
	check_closed(fd);
	close(fd);
	unmake(&b);
}

static void break_by(struct bench *b, unsigned queue, uint32_t length, uint16_t flags,
                     const char *why)
{
	uint32_t port;
	int fd;

	start(b);
	fd = client(b, 5, &port);
	if (queue == RX) {
		/* The buffers before it are used up first. */
		struct queue *q = &b->queues[RX];
		uint16_t head;
		uint32_t ignored;

		WAIT_FOR(q->driver.free_count > 0 || (write(fd, "x", 1) == 1 &&
		                                      driver_collect(&q->driver, &head, &ignored)));
		add(q, length, flags);
		for (unsigned i = 0; i < 2 * SIZE && !readable(b->broken_fd, 0); i++) {
			(void)send(fd, "x", 1, MSG_NOSIGNAL);
			usleep(200);
		}
	} else {
		struct virtio_vsock_hdr packet = header(VIRTIO_VSOCK_OP_RW, 5, port);

		packet.len = 1;
		memcpy(place(&b->queues[TX], b->queues[TX].driver.free_head), &packet,
		       sizeof(packet));
		add(&b->queues[TX], length, flags);
	}
	CHECK(readable(b->broken_fd, 10000));
	check_reason(b->irq, why);
	check_closed(fd);
	close(fd);
	stop(b);
	CHECK_EQ(eventfd_read(b->broken_fd, &(eventfd_t){0}), 0);
}

static void test_buffers_that_break_the_device(void)
{
	struct bench b;

	make_device(&b, 10);
	break_by(&b, TX, PV_VSOCK_HEADER - 1, 0, "a packet without a whole header");
	break_by(&b, TX, PV_VSOCK_HEADER, 0, "a packet shorter than its header says");
	break_by(&b, TX, LENGTH, PV_DESC_WRITE, "a packet that is to be written");
	break_by(&b, RX, PV_VSOCK_HEADER, PV_DESC_WRITE,
	         "a receive buffer without room for a packet");
	break_by(&b, RX, LENGTH, 0, "a receive buffer that is to be read");
	start(&b);
	unmake(&b);
}

int main(void)
{
	RUN(test_bulk_both_ways);
	RUN(test_no_more_than_the_credit_of_the_driver);
	RUN(test_messages_of_changing_sizes_are_whole);
	RUN(test_no_more_than_the_credit_of_the_device);
	RUN(test_all_of_the_credit_of_the_device);
	RUN(test_what_was_sent_before_the_end_arrives);
	RUN(test_a_guest_that_breaks_off);
	RUN(test_a_thousand_connections_at_once);
	RUN(test_a_table_that_is_full);
	RUN(test_a_slow_host_keeps_nobody);
	RUN(test_a_driver_without_buffers);
	RUN(test_packets_that_are_none);
	RUN(test_operations_out_of_place);
	RUN(test_buffers_that_break_the_device);
	return 0;
}
