/* A driver of a console device with one port, number 1 of two, and the host's end of that. */
#ifndef PV_TESTS_PORT_BENCH_H
#define PV_TESTS_PORT_BENCH_H

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "port/internal.h"
#include "tests/virtio/driver.h"
#include "virtio/irq.h"

enum { SIZE = 64, LENGTH = 4096, ROOM = SIZE * LENGTH };
enum { IN, OUT, CONTROL_IN, CONTROL_OUT, QUEUES };
enum { DEVICE_READY = 0, PORT_ADD = 1, PORT_READY = 3, CONSOLE_PORT = 4, RESIZE = 5 };
enum { PORT_OPEN = 6, PORT_NAME = 7 };

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

static inline void make_queue(struct queue *q)
{
	q->data = driver_init(&q->driver, SIZE, 1, 1, ROOM);
	CHECK_EQ(pv_virtqueue_new(q->driver.memory, &q->driver.config, &q->ring), 0);
	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static inline struct pv_queue served(const struct queue *q)
{
	return (struct pv_queue){q->ring, q->kick_fd};
}

/* What the driver has, with room for its `pairs`. */
static inline struct pv_ports_activation activation_of(struct bench *b, struct pv_port_pair *pairs)
{
	struct queue *q = b->queues;

	pairs[0] = (struct pv_port_pair){{NULL, -1}, {NULL, -1}};
	pairs[1] = (struct pv_port_pair){served(&q[IN]), served(&q[OUT])};
	return (struct pv_ports_activation){
		.control = {served(&q[CONTROL_IN]), served(&q[CONTROL_OUT])},
		.pairs = pairs,
		.count = 2,
		.irq = b->irq,
	};
}

/* Have a thread serve the queues as they are. */
static inline void serve(struct bench *b)
{
	struct pv_port_pair pairs[2];
	struct pv_ports_activation activation = activation_of(b, pairs);

	CHECK_EQ(pv_ports_start(b->ports, &activation), 0);
	CHECK_EQ(pv_ports_start(b->ports, &activation), -EBUSY);
}

static inline void start(struct bench *b)
{
	for (unsigned i = 0; i < QUEUES; i++)
		make_queue(&b->queues[i]);
	serve(b);
}

static inline void stop(struct bench *b)
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

#define NOBODY {.number = 1, .in_fd = -1, .out_fd = -1, .listen_fd = -1, .quit_fd = -1, .name = "bulk"}

/* `host` and `own` are closed with it, if they are not -1. */
static inline void make(struct bench *b, const struct pv_port_config *config, int host, int own)
{
	memset(b, 0, sizeof(*b));
	b->host = host;
	b->own = own;
	b->page = aligned_alloc(4096, 4096);
	CHECK(b->page);
	memset(b->page, 0, 4096);
	b->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	b->broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK_EQ(pv_virtio_irq_new(b->page, b->irq_fd, b->broken_fd, &b->irq), 0);
	CHECK_EQ(pv_ports_new(config, 1, &b->ports), 0);
	start(b);
}

/* With both ends of a connection. */
static inline void make_pair(struct bench *b)
{
	struct pv_port_config config = NOBODY;
	int ends[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	config.in_fd = config.out_fd = ends[1];
	make(b, &config, ends[0], ends[1]);
}

static inline void unmake(struct bench *b)
{
	stop(b);
	pv_ports_free(b->ports);
	pv_virtio_irq_free(b->irq);
	free(b->page);
	if (b->host >= 0)
		close(b->host);
	if (b->own >= 0)
		close(b->own);
	close(b->irq_fd);
	close(b->broken_fd);
}

static inline uint8_t *place(const struct queue *q, uint16_t head)
{
	return q->driver.ram + q->data + (size_t)head * LENGTH;
}

static inline void add(struct queue *q, const void *data, uint32_t length, uint16_t flags)
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
static inline const uint8_t *take(struct queue *q, uint32_t *length)
{
	uint16_t head;

	WAIT_FOR(__atomic_load_n(&q->driver.used->idx, __ATOMIC_ACQUIRE) != q->driver.collected);
	CHECK(driver_collect(&q->driver, &head, length));
	return place(q, head);
}

static inline void tell(struct bench *b, uint8_t event)
{
	const uint8_t message[8] = {1, 0, 0, 0, event, 0, 1, 0};
	uint32_t length;

	add(&b->queues[CONTROL_OUT], message, sizeof(message), 0);
	take(&b->queues[CONTROL_OUT], &length);
}

static inline void hear(struct bench *b, uint8_t event, uint8_t value)
{
	const uint8_t expected[8] = {1, 0, 0, 0, event, 0, value, 0};
	uint32_t length;
	const uint8_t *message;

	add(&b->queues[CONTROL_IN], NULL, LENGTH, PV_DESC_WRITE);
	message = take(&b->queues[CONTROL_IN], &length);
	CHECK_EQ(length, event == PORT_NAME ? 12 : 8);
	CHECK_EQ(memcmp(message, expected, 8), 0);
}

static inline void introduce(struct bench *b, bool open)
{
	tell(b, DEVICE_READY);
	hear(b, PORT_ADD, 1);
	tell(b, PORT_READY);
	hear(b, PORT_NAME, 1);
	if (open)
		hear(b, PORT_OPEN, 1);
	tell(b, PORT_OPEN);
}


#endif
