/* What a port moves and what it leaves in the rings: hostile buffers, ends that are full, clients
 * and drivers that go at the wrong moment. */
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "tests/port/bench.h"
#include "tests/process.h"

static atomic_uint polls;

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	atomic_fetch_add(&polls, 1);
	return (int)syscall(SYS_ppoll, fds, count, timeout, mask, 8);
}

/* The thread waits, and not only for its turn among others: a tenth of a second goes by. */
static bool is_at_rest(void)
{
	static unsigned quiet;

	usleep(2000);
	quiet = atomic_exchange(&polls, 0) > 0 ? 0 : quiet + 1;
	if (quiet < 50)
		return false;
	quiet = 0;
	return true;
}

static struct pv_ports_stats stats(const struct bench *b)
{
	struct pv_ports_stats stats;

	pv_ports_stats(b->ports, &stats);
	return stats;
}

static void take_all(struct queue *q, unsigned count)
{
	uint32_t length;

	while (count-- > 0) {
		take(q, &length);
		CHECK_EQ(length, 0);
	}
}

/* Two ends of a connection that holds little. */
static void make_small_pair(struct bench *b)
{
	const int least = 1;

	make_pair(b);
	CHECK_EQ(setsockopt(b->own, SOL_SOCKET, SO_SNDBUF, &least, sizeof(least)), 0);
	introduce(b, true);
}

enum { PART = LENGTH - 1 }; /* of no size that sockets take by */

/* Offer more output at once than the host's end takes, each buffer with bytes of its own. */
static void fill_host(struct bench *b)
{
	static uint8_t bytes[PART];

	CHECK_EQ(pv_ports_drain(b->ports, PV_FOREVER), 0);
	for (unsigned i = 0; i < SIZE; i++) {
		memset(bytes, (int)i + 1, PART);
		add(&b->queues[OUT], bytes, PART, 0);
	}
	serve(b);
	WAIT_FOR(stats(b).blocked > 0);
}

/* A full end is found full again by the next thread, and loses nothing of it. */
static void test_a_full_end_when_the_thread_changes(void)
{
	static uint8_t bytes[PART];
	struct bench b;

	make_small_pair(&b);
	fill_host(&b);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t blocked = stats(&b).blocked;

		CHECK_EQ(pv_ports_drain(b.ports, PV_FOREVER), 0);
		serve(&b);
		WAIT_FOR(stats(&b).blocked > blocked);
	}
	for (unsigned i = 0; i < SIZE; i++) {
		read_all(b.host, bytes, PART);
		CHECK_EQ(bytes[0], i + 1);
		CHECK_EQ(bytes[PART - 1], i + 1);
	}
	take_all(&b.queues[OUT], SIZE);
	CHECK_EQ(stats(&b).dropped, 0);
	unmake(&b);
}

/* Fill the host's end until it has a part of a buffer. */
static void take_a_part(struct bench *b)
{
	fill_host(b);
	CHECK_EQ(pv_ports_drain(b->ports, PV_FOREVER), 0);
	CHECK(b->ports->port[1].taken > 0);
	CHECK(b->ports->port[1].taken < PART);
}

/* What one driver has begun is no part of what the next one sends. */
static void test_a_driver_that_goes_within_a_buffer(void)
{
	struct bench b;
	uint8_t byte;

	make_small_pair(&b);
	take_a_part(&b);
	stop(&b);
	while (readable(b.host, 0))
		CHECK_EQ(read(b.host, &byte, 1), 1);
	start(&b);
	introduce(&b, true);
	add(&b.queues[OUT], "whole", 5, 0);
	for (unsigned i = 0; i < 5; i++) {
		read_all(b.host, &byte, 1);
		CHECK_EQ(byte, "whole"[i]);
	}
	unmake(&b);
}

/* Of a buffer that is smaller by now than what was taken of it nothing is left. */
static void test_a_buffer_that_shrinks(void)
{
	struct bench b;
	uint8_t byte = 0;

	make_small_pair(&b);
	take_a_part(&b);
	for (unsigned i = 0; i < SIZE; i++)
		b.queues[OUT].driver.desc[i].length = 1;
	serve(&b);
	while (byte != SIZE)
		read_all(b.host, &byte, 1);
	take_all(&b.queues[OUT], SIZE);
	CHECK(!pv_virtio_irq_is_broken(b.irq));
	unmake(&b);
}

/* Offer a table of `count` segments of `length` bytes of the same memory, so many times. */
static void add_tables(struct queue *q, uint16_t count, uint32_t length, unsigned times)
{
	struct pv_desc *table = (struct pv_desc *)(void *)(q->driver.ram + q->data);
	const struct pv_desc desc = {.address = q->data,
	                             .length = count * (uint32_t)sizeof(*table),
	                             .flags = PV_DESC_INDIRECT};

	for (uint16_t i = 0; i < count; i++) {
		table[i] = (struct pv_desc){.address = q->data + ROOM - length, .length = length};
		table[i].flags = i + 1 < count ? PV_DESC_NEXT : 0;
		table[i].next = (uint16_t)(i + 1);
	}
	while (times-- > 0)
		(void)driver_add(&q->driver, &desc, 1);
	(void)driver_publish(&q->driver);
}

/* Together they have more segments than a system call takes. */
static void test_buffers_of_many_segments(void)
{
	enum { SEGMENTS = PV_PORT_SEGMENTS - 10, BUFFERS = 5 };
	static uint8_t bytes[BUFFERS * SEGMENTS];
	struct bench b;

	make_pair(&b);
	introduce(&b, true);
	CHECK_EQ(pv_ports_drain(b.ports, PV_FOREVER), 0);
	b.queues[OUT].driver.ram[b.queues[OUT].data + ROOM - 1] = 'x';
	add_tables(&b.queues[OUT], SEGMENTS, 1, BUFFERS);
	serve(&b);
	read_all(b.host, bytes, sizeof(bytes));
	for (unsigned i = 0; i < sizeof(bytes); i++)
		CHECK_EQ(bytes[i], 'x');
	take_all(&b.queues[OUT], BUFFERS);
	unmake(&b);
}

/* A turn moves four times 1 MiB, to the byte, however large a buffer is. */
static void test_a_large_buffer_takes_turns(void)
{
	enum { SEGMENTS = 100, LARGE = ROOM / 2 - 1 };
	struct pv_port_config config = NOBODY;
	struct pv_ports_activation activation;
	struct pv_port_pair pairs[2];
	struct bench b;

	config.out_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	make(&b, &config, -1, config.out_fd);
	CHECK_EQ(pv_ports_drain(b.ports, PV_FOREVER), 0);
	activation = activation_of(&b, pairs);
	pv_ports_begin(b.ports, &activation);
	add_tables(&b.queues[OUT], SEGMENTS, LARGE, 1);
	for (unsigned i = 1; i < 4; i++) {
		pv_port_serve(b.ports);
		CHECK_EQ(stats(&b).bytes_out, 4 * i * PV_PORT_BATCH);
		CHECK_EQ(pv_virtqueue_in_flight(b.queues[OUT].ring), 0);
	}
	pv_port_serve(b.ports);
	CHECK_EQ(stats(&b).bytes_out, SEGMENTS * LARGE);
	take_all(&b.queues[OUT], 1);
	unmake(&b);
}

static int connect_to(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK_EQ(connect(fd, (const struct sockaddr *)address, sizeof(*address)), 0);
	return fd;
}

/* Each of them goes while the guest does not read: one has said something, the next has not. */
static void test_clients_that_leave_nothing_behind(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct pv_port_config config = NOBODY;
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	unsigned before;
	struct bench b;
	uint32_t length;
	int client;

	snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "pv-data-%d", (int)getpid());
	CHECK_EQ(bind(server, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(listen(server, 4), 0);
	config.listen_fd = server;
	make(&b, &config, -1, -1);
	introduce(&b, false);
	before = descriptors();
	for (uint64_t i = 1; i < 5; i++) {
		client = connect_to(&address);
		hear(&b, PORT_OPEN, 1);
		write_all(client, "x", 1);
		close(client);
		WAIT_FOR(stats(&b).starved >= i);
		add(&b.queues[IN], NULL, LENGTH, PV_DESC_WRITE);
		CHECK_EQ(*take(&b.queues[IN], &length), 'x');
		hear(&b, PORT_OPEN, 0);
		client = connect_to(&address);
		hear(&b, PORT_OPEN, 1);
		close(client);
		hear(&b, PORT_OPEN, 0);
	}
	CHECK_EQ(descriptors(), before);
	unmake(&b);
	close(server);
}

/* Of a peer that is gone, and of which something is left to read, the thread is told once. */
static void test_a_thread_rests_though_its_peer_is_gone(void)
{
	struct bench b;
	uint32_t length;

	make_pair(&b);
	introduce(&b, true);
	write_all(b.host, "x", 1);
	close(b.host);
	b.host = -1;
	WAIT_FOR(is_at_rest());
	CHECK_EQ(stats(&b).closed, 0);
	add(&b.queues[IN], NULL, LENGTH, PV_DESC_WRITE);
	CHECK_EQ(*take(&b.queues[IN], &length), 'x');
	hear(&b, PORT_OPEN, 0);
	unmake(&b);
}

static void test_a_thread_of_a_broken_device_rests(void)
{
	struct bench b;

	make_pair(&b);
	introduce(&b, true);
	add(&b.queues[CONTROL_OUT], "short", 5, 0);
	CHECK(readable(b.broken_fd, 10000));
	write_all(b.host, "x", 1);
	close(b.host);
	b.host = -1;
	WAIT_FOR(is_at_rest());
	unmake(&b);
}

/* A port that is there, but which the driver has no queues of. */
static void test_a_message_about_a_port_beyond_the_drivers(void)
{
	static const uint8_t message[8] = {2, 0, 0, 0, PORT_READY, 0, 1, 0};
	struct pv_port_config config = NOBODY;
	struct bench b;

	config.number = 2;
	make(&b, &config, -1, -1);
	add(&b.queues[CONTROL_OUT], message, sizeof(message), 0);
	CHECK(readable(b.broken_fd, 10000));
	CHECK(pv_virtio_irq_is_broken(b.irq));
	unmake(&b);
}

int main(void)
{
	RUN(test_a_full_end_when_the_thread_changes);
	RUN(test_a_driver_that_goes_within_a_buffer);
	RUN(test_a_buffer_that_shrinks);
	RUN(test_buffers_of_many_segments);
	RUN(test_a_large_buffer_takes_turns);
	RUN(test_clients_that_leave_nothing_behind);
	RUN(test_a_thread_rests_though_its_peer_is_gone);
	RUN(test_a_thread_of_a_broken_device_rests);
	RUN(test_a_message_about_a_port_beyond_the_drivers);
	return 0;
}
