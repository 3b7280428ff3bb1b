/* A console device with its thread: bytes both ways, clients that come and go, hostile rings. */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "port/internal.h"
#include "tests/virtio/driver.h"
#include "virtio/irq.h"

enum { SIZE = 64, LENGTH = 4096, ROOM = SIZE * LENGTH, BULK = 4 << 20 };
enum { IN, OUT, CONTROL_IN, CONTROL_OUT, QUEUES };
enum { DEVICE_READY = 0, PORT_ADD = 1, PORT_READY = 3, PORT_OPEN = 6, PORT_NAME = 7 };

/* Each queue has a memory of its own, with a place of LENGTH bytes for each head. */
struct queue {
	struct driver driver;
	struct pv_virtqueue *ring;
	size_t data;
	int kick_fd;
};

struct bench {
	struct queue queues[QUEUES];
	void *page;
	int irq_fd, broken_fd, host, own;
	struct pv_virtio_irq *irq;
	struct pv_ports *ports;
};

static uint8_t sent[BULK], received[BULK];

static void make_queue(struct queue *q)
{
	q->data = driver_init(&q->driver, SIZE, 1, 0, ROOM);
	CHECK_EQ(pv_virtqueue_new(q->driver.memory, &q->driver.config, &q->ring), 0);
	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static struct pv_queue served(const struct queue *q)
{
	return (struct pv_queue){q->ring, q->kick_fd};
}

static void start(struct bench *b)
{
	struct queue *q = b->queues;
	struct pv_port_pair pairs[2] = {{{NULL, -1}, {NULL, -1}}};
	struct pv_ports_activation activation = {.pairs = pairs, .count = 2, .irq = b->irq};

	for (unsigned i = 0; i < QUEUES; i++)
		make_queue(&q[i]);
	pairs[1] = (struct pv_port_pair){served(&q[IN]), served(&q[OUT])};
	activation.control = (struct pv_port_pair){served(&q[CONTROL_IN]), served(&q[CONTROL_OUT])};
	CHECK_EQ(pv_ports_start(b->ports, &activation), 0);
	CHECK_EQ(pv_ports_start(b->ports, &activation), -EBUSY);
}

static void stop(struct bench *b)
{
	CHECK_EQ(pv_ports_stop(b->ports, PV_FOREVER), 0);
	CHECK_EQ(pv_ports_stop(b->ports, PV_FOREVER), 0);
	pv_virtio_irq_reset(b->irq);
	for (unsigned i = 0; i < QUEUES; i++) {
		pv_virtqueue_free(b->queues[i].ring);
		driver_destroy(&b->queues[i].driver);
		close(b->queues[i].kick_fd);
	}
}

static void make(struct bench *b, int listen_fd)
{
	struct pv_port_config config = {1, -1, listen_fd, "bulk"};
	int ends[2];

	memset(b, 0, sizeof(*b));
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	b->host = ends[0];
	b->own = ends[1];
	if (listen_fd < 0)
		config.fd = b->own;
	b->page = aligned_alloc(4096, 4096);
	CHECK(b->page);
	memset(b->page, 0, 4096);
	b->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	b->broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK_EQ(pv_virtio_irq_new(b->page, b->irq_fd, b->broken_fd, &b->irq), 0);
	CHECK_EQ(pv_ports_new(&config, 1, &b->ports), 0);
	start(b);
}

static void unmake(struct bench *b)
{
	stop(b);
	pv_ports_free(b->ports);
	pv_virtio_irq_free(b->irq);
	free(b->page);
	close(b->host);
	close(b->own);
	close(b->irq_fd);
	close(b->broken_fd);
}

static uint8_t *place(const struct queue *q, uint16_t head)
{
	return q->driver.ram + q->data + (size_t)head * LENGTH;
}

static void add(struct queue *q, const void *data, uint32_t length, uint16_t flags)
{
	uint16_t head = q->driver.free_head;
	struct pv_desc desc = {.address = q->data + (size_t)head * LENGTH, .length = length};

	desc.flags = flags;
	if (data)
		memcpy(place(q, head), data, length);
	CHECK_EQ(driver_add(&q->driver, &desc, 1), head);
	if (driver_publish(&q->driver))
		CHECK_EQ(eventfd_write(q->kick_fd, 1), 0);
}

/* Wait for a chain to be used; where its bytes are. */
static const uint8_t *take(struct queue *q, uint32_t *length)
{
	uint16_t head;

	WAIT_FOR(__atomic_load_n(&q->driver.used->idx, __ATOMIC_ACQUIRE) != q->driver.collected);
	CHECK(driver_collect(&q->driver, &head, length));
	return place(q, head);
}

static void tell(struct bench *b, uint8_t event)
{
	const uint8_t message[8] = {1, 0, 0, 0, event, 0, 1, 0};
	uint32_t length;

	add(&b->queues[CONTROL_OUT], message, sizeof(message), 0);
	take(&b->queues[CONTROL_OUT], &length);
}

static void hear(struct bench *b, uint8_t event, uint8_t value)
{
	const uint8_t expected[8] = {1, 0, 0, 0, event, 0, value, 0};
	uint32_t length;
	const uint8_t *message;

	add(&b->queues[CONTROL_IN], NULL, LENGTH, PV_DESC_WRITE);
	message = take(&b->queues[CONTROL_IN], &length);
	CHECK_EQ(length, event == PORT_NAME ? 12 : 8);
	CHECK_EQ(memcmp(message, expected, 8), 0);
}

static void introduce(struct bench *b, bool open)
{
	tell(b, DEVICE_READY);
	hear(b, PORT_ADD, 1);
	tell(b, PORT_READY);
	hear(b, PORT_NAME, 1);
	if (open)
		hear(b, PORT_OPEN, 1);
	tell(b, PORT_OPEN);
}

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
	make(&b, -1);
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
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct pv_ports_stats stats;
	struct bench b;
	uint32_t length;
	int client;

	snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "pv-port-%d", (int)getpid());
	CHECK_EQ(bind(server, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(listen(server, 4), 0);
	make(&b, server);
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

	make(&b, -1);
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

static void test_what_cannot_be_is_refused(void)
{
	char name[PV_PORT_NAME_MAX + 2];
	struct pv_port_config configs[2] = {{1, 0, -1, ""}, {1, 0, -1, ""}};
	struct pv_ports *ports;

	memset(name, 'n', sizeof(name));
	name[sizeof(name) - 1] = 0;
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	configs[1] = (struct pv_port_config){PV_PORTS_MAX, 0, -1, ""};
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	configs[1] = (struct pv_port_config){2, 0, -1, name};
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	configs[1] = (struct pv_port_config){2, 0, 0, ""};
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	configs[1] = (struct pv_port_config){2, -1, -1, ""};
	CHECK_EQ(pv_ports_new(configs, 2, &ports), -EINVAL);
	CHECK(!ports);
}

int main(void)
{
	RUN(test_bulk_both_ways);
	RUN(test_clients_come_and_go);
	RUN(test_a_broken_device_stops_and_starts);
	RUN(test_what_cannot_be_is_refused);
	return 0;
}
