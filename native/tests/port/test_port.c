/* A console device with its thread: bytes both ways, clients that come and go, hostile rings. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/un.h>

#include "tests/port/bench.h"

enum { BULK = 4 << 20 };

static uint8_t sent[BULK], received[BULK];

static void *talk(void *bench)
{
	write_all(((struct bench *)bench)->host, sent, BULK);
	return NULL;
}

static void *listen_to(void *bench)
{
	read_all(((struct bench *)bench)->host, received, BULK);
	return NULL;
}

static void test_bulk_both_ways(void)
{
	static uint8_t got[BULK];
	struct bench b;
	pthread_t talker, listener;
	size_t in = 0, out = 0;
	uint32_t length;
	uint16_t head;

	for (size_t i = 0; i < BULK; i++)
		sent[i] = (uint8_t)(i * 7 + i / 4096);
	make_pair(&b);
	introduce(&b, true);
	CHECK_EQ(pthread_create(&talker, NULL, talk, &b), 0);
	CHECK_EQ(pthread_create(&listener, NULL, listen_to, &b), 0);
	for (unsigned i = 0; i < SIZE; i++)
		add(&b.queues[IN], NULL, LENGTH, PV_DESC_WRITE);
	while (in < BULK || out < BULK) {
		while (driver_collect(&b.queues[OUT].driver, &head, &length))
			CHECK_EQ(length, 0);
		for (; out < BULK && b.queues[OUT].driver.free_count > 0; out += LENGTH)
			add(&b.queues[OUT], sent + out, LENGTH, 0);
		while (driver_collect(&b.queues[IN].driver, &head, &length)) {
			CHECK(in + length <= BULK);
			memcpy(got + in, place(&b.queues[IN], head), length);
			in += length;
			add(&b.queues[IN], NULL, LENGTH, PV_DESC_WRITE);
		}
		usleep(50);
	}
	pthread_join(talker, NULL);
	pthread_join(listener, NULL);
	CHECK_EQ(memcmp(got, sent, BULK), 0);
	CHECK_EQ(memcmp(received, sent, BULK), 0);
	unmake(&b);
}

static int connect_to(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK_EQ(connect(fd, (const struct sockaddr *)address, sizeof(*address)), 0);
	return fd;
}

/* Also while the driver resets, and after the device is stopped. */
static void test_clients_come_and_go(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct pv_port_config config = NOBODY;
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct pv_ports_stats stats;
	struct bench b;
	uint32_t length;
	int client;

	snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "pv-port-%d", (int)getpid());
	CHECK_EQ(bind(server, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(listen(server, 4), 0);
	config.listen_fd = server;
	make(&b, &config, -1, -1);
	introduce(&b, false);
	for (unsigned i = 0; i < 20; i++) {
		client = connect_to(&address);
		hear(&b, PORT_OPEN, 1);
		write_all(client, &i, sizeof(i));
		add(&b.queues[IN], NULL, LENGTH, PV_DESC_WRITE);
		CHECK_EQ(memcmp(take(&b.queues[IN], &length), &i, sizeof(i)), 0);
		close(client);
		hear(&b, PORT_OPEN, 0);
	}
	client = connect_to(&address);
	hear(&b, PORT_OPEN, 1);
	stop(&b);
	start(&b);
	introduce(&b, true);
	close(client);
	hear(&b, PORT_OPEN, 0);
	client = connect_to(&address);
	hear(&b, PORT_OPEN, 1);
	pv_ports_stats(b.ports, &stats);
	CHECK_EQ(stats.opened, 22);
	CHECK_EQ(stats.closed, 21);
	unmake(&b);
	close(client);
	close(server);
}

static void test_a_broken_device_stops_and_starts(void)
{
	struct bench b;
	uint8_t byte;

	make_pair(&b);
	introduce(&b, true);
	add(&b.queues[CONTROL_OUT], "short", 5, 0);
	CHECK(readable(b.broken_fd, 10000));
	CHECK(pv_virtio_irq_is_broken(b.irq));
	stop(&b);
	start(&b);
	introduce(&b, true);
	add(&b.queues[OUT], "x", 1, 0);
	read_all(b.host, &byte, 1);
	CHECK_EQ(byte, 'x');
	unmake(&b);
}

/* Of what was open and told nothing is left, whatever the host's end does meanwhile. */
static void test_another_driver_begins_anew(void)
{
	struct pv_ports_stats stats;
	struct bench b;

	make_pair(&b);
	introduce(&b, true);
	CHECK_EQ(pv_ports_open(b.ports, 1), PV_PORT_GUEST | PV_PORT_HOST_END);
	stop(&b);
	CHECK_EQ(pv_ports_open(b.ports, 1), PV_PORT_HOST_END);
	start(&b);
	add(&b.queues[CONTROL_IN], NULL, LENGTH, PV_DESC_WRITE);
	close(b.host);
	b.host = -1;
	do
		pv_ports_stats(b.ports, &stats);
	while (stats.closed == 0);
	introduce(&b, false);
	unmake(&b);
}

static void test_what_is_restored(void)
{
	struct pv_port_state state = {.owed = UINT32_MAX, .taken = 3};
	struct bench b;

	make_pair(&b);
	CHECK_EQ(pv_ports_restore(b.ports, 1, &state), -EINVAL); /* it runs */
	stop(&b);
	CHECK_EQ(pv_ports_restore(b.ports, 0, &state), -EINVAL);
	CHECK_EQ(pv_ports_restore(b.ports, PV_PORTS_MAX, &state), -EINVAL);
	/* What is owed to a driver that knows the port, or is to know of it, and no more than there is. */
	CHECK_EQ(pv_ports_restore(b.ports, 1, &state), 0);
	pv_ports_save(b.ports, 1, &state);
	CHECK_EQ(state.owed, PV_PORT_OWES_ALL);
	CHECK_EQ(state.taken, 3);
	state.owed = PV_PORT_OWES_NAME;
	CHECK_EQ(pv_ports_restore(b.ports, 1, &state), 0);
	pv_ports_save(b.ports, 1, &state);
	CHECK_EQ(state.owed, 0);
	/* The host's end has come since. */
	state.ready = 1;
	CHECK_EQ(pv_ports_restore(b.ports, 1, &state), 0);
	pv_ports_save(b.ports, 1, &state);
	CHECK_EQ(state.owed, 0);
	state.there = 0;
	CHECK_EQ(pv_ports_restore(b.ports, 1, &state), 0);
	pv_ports_save(b.ports, 1, &state);
	CHECK_EQ(state.owed, PV_PORT_OWES_OPEN);
	start(&b);
	unmake(&b);
}

static void test_what_cannot_be_is_refused(void)
{
	char name[PV_PORT_NAME_MAX + 2];
	struct pv_port_config configs[2] = {NOBODY, NOBODY};
	const struct pv_port_config other = {.number = 2, .in_fd = -1, .out_fd = -1, .listen_fd = -1,
	                                     .quit_fd = -1, .name = ""};
	struct pv_ports *ports;
	int ends[2];

	memset(name, 'n', sizeof(name));
	name[sizeof(name) - 1] = 0;
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	configs[1] = other;
	configs[1].number = PV_PORTS_MAX;
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	configs[1] = other;
	configs[1].name = name;
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	configs[1] = other;
	configs[1].in_fd = configs[1].listen_fd = 0;
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
	configs[1] = other;
	configs[1].out_fd = ends[0];
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EBADF);
	close(ends[0]);
	close(ends[1]);
	configs[1].out_fd = 12345;
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EBADF);
	CHECK(!ports);
}

int main(void)
{
	RUN(test_bulk_both_ways);
	RUN(test_clients_come_and_go);
	RUN(test_a_broken_device_stops_and_starts);
	RUN(test_another_driver_begins_anew);
	RUN(test_what_is_restored);
	RUN(test_what_cannot_be_is_refused);
	return 0;
}
