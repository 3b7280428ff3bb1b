/* A socket device with its thread, a driver of it, and the host's side, for C tests. */
#ifndef PV_TESTS_VSOCK_BENCH_H
#define PV_TESTS_VSOCK_BENCH_H

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/virtio/driver.h"
#include "tests/virtio/reason.h"
#include "virtio/irq.h"
#include "vsock/internal.h"

enum { SIZE = 128, LENGTH = 4096, DATA_MAX = LENGTH - PV_VSOCK_HEADER, CID = 7, HOST = 2 };
enum { RX, TX, QUEUES };

#define BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)
#define CREDIT (1 << 20) /* of the driver's, unless a test says otherwise */

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
	int irq_fd, broken_fd, listen_fd;
	char folder[32], path[64];
	struct pv_virtio_irq *irq;
	struct pv_vsock *vsock;
};

struct packet {
	struct virtio_vsock_hdr header;
	uint8_t data[DATA_MAX];
};

static inline void make_queue(struct queue *q)
{
	q->data = driver_init(&q->driver, SIZE, 1, 0, SIZE * LENGTH);
	CHECK_EQ(pv_virtqueue_new(q->driver.memory, &q->driver.config, &q->ring), 0);
	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static inline uint8_t *place(const struct queue *q, uint16_t head)
{
	return q->driver.ram + q->data + (size_t)head * LENGTH;
}

static inline void add(struct queue *q, uint32_t length, uint16_t flags)
{
	uint16_t head = q->driver.free_head;
	struct pv_desc desc = {.address = q->data + (size_t)head * LENGTH, .length = length};

	desc.flags = flags;
	CHECK_EQ(driver_add(&q->driver, &desc, 1), head);
	if (driver_publish(&q->driver))
		CHECK_EQ(eventfd_write(q->kick_fd, 1), 0);
}

static inline void start_without_buffers(struct bench *b)
{
	struct pv_vsock_activation activation = {.irq = b->irq};

	for (unsigned i = 0; i < QUEUES; i++)
		make_queue(&b->queues[i]);
	activation.rx = (struct pv_queue){b->queues[RX].ring, b->queues[RX].kick_fd};
	activation.tx = (struct pv_queue){b->queues[TX].ring, b->queues[TX].kick_fd};
	CHECK_EQ(pv_vsock_start(b->vsock, &activation), 0);
	CHECK_EQ(pv_vsock_start(b->vsock, &activation), -EBUSY);
}

static inline void start(struct bench *b)
{
	start_without_buffers(b);
	for (unsigned i = 0; i < SIZE; i++)
		add(&b->queues[RX], LENGTH, PV_DESC_WRITE);
}

static inline void stop(struct bench *b)
{
	CHECK_EQ(pv_vsock_stop(b->vsock, PV_FOREVER), 0);
	CHECK_EQ(pv_vsock_stop(b->vsock, PV_FOREVER), 0);
	pv_virtio_irq_reset(b->irq);
	for (unsigned i = 0; i < QUEUES; i++) {
		pv_virtqueue_free(b->queues[i].ring);
		driver_destroy(&b->queues[i].driver);
		close(b->queues[i].kick_fd);
	}
}

static inline struct sockaddr_un address_of(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	CHECK(strlen(path) < sizeof(address.sun_path));
	memcpy(address.sun_path, path, strlen(path));
	return address;
}

static inline int listen_at(const char *path, int backlog)
{
	struct sockaddr_un address = address_of(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	CHECK_EQ(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(listen(fd, backlog), 0);
	return fd;
}

static inline void make_device(struct bench *b, uint32_t connections)
{
	struct pv_vsock_config config = {.guest_cid = CID, .connections = connections};

	memset(b, 0, sizeof(*b));
	strcpy(b->folder, "/tmp/pv-vsock-XXXXXX");
	CHECK(mkdtemp(b->folder));
	(void)snprintf(b->path, sizeof(b->path), "%s/v", b->folder);
	config.path = b->path;
	config.listen_fd = b->listen_fd = listen_at(b->path, 1024);
	b->page = aligned_alloc(4096, 4096);
	CHECK(b->page);
	memset(b->page, 0, 4096);
	b->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	b->broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK_EQ(pv_virtio_irq_new(b->page, b->irq_fd, b->broken_fd, &b->irq), 0);
	CHECK_EQ(pv_vsock_new(&config, &b->vsock), 0);
}

static inline void make(struct bench *b)
{
	make_device(b, 2000);
	start(b);
}

static inline void unmake(struct bench *b)
{
	stop(b);
	pv_vsock_free(b->vsock);
	pv_virtio_irq_free(b->irq);
	free(b->page);
	close(b->listen_fd);
	close(b->irq_fd);
	close(b->broken_fd);
	unlink(b->path);
	CHECK_EQ(rmdir(b->folder), 0);
}

/* Send a packet of the driver's, of `bytes` in all; wait until there is a place for it. */
static inline void send_raw(struct bench *b, const void *packet, uint32_t bytes)
{
	struct queue *q = &b->queues[TX];
	uint16_t head;
	uint32_t length;

	while (driver_collect(&q->driver, &head, &length))
		CHECK_EQ(length, 0);
	WAIT_FOR(q->driver.free_count > 0 || driver_collect(&q->driver, &head, &length));
	memcpy(place(q, q->driver.free_head), packet, bytes);
	add(q, bytes, 0);
}

static inline struct virtio_vsock_hdr header(uint16_t op, uint32_t guest_port, uint32_t host_port)
{
	return (struct virtio_vsock_hdr){
		.src_cid = CID,
		.dst_cid = HOST,
		.src_port = guest_port,
		.dst_port = host_port,
		.type = VIRTIO_VSOCK_TYPE_STREAM,
		.op = op,
		.buf_alloc = CREDIT,
	};
}

static inline void say(struct bench *b, uint16_t op, uint32_t guest_port, uint32_t host_port)
{
	struct virtio_vsock_hdr packet = header(op, guest_port, host_port);

	send_raw(b, &packet, sizeof(packet));
}

static inline void shut(struct bench *b, uint32_t guest_port, uint32_t host_port, uint32_t flags)
{
	struct virtio_vsock_hdr packet = header(VIRTIO_VSOCK_OP_SHUTDOWN, guest_port, host_port);

	packet.flags = flags;
	send_raw(b, &packet, sizeof(packet));
}

static inline void send_data(struct bench *b, uint32_t guest_port, uint32_t host_port,
                             const void *data, uint32_t length, uint32_t forwarded)
{
	struct packet packet = {header(VIRTIO_VSOCK_OP_RW, guest_port, host_port), {0}};

	packet.header.len = length;
	packet.header.fwd_cnt = forwarded;
	memcpy(packet.data, data, length);
	send_raw(b, &packet, PV_VSOCK_HEADER + length);
}

/* The next packet for the driver; 0: there is none yet. Its buffer is offered again. */
static inline int try_hear(struct bench *b, struct packet *packet)
{
	struct queue *q = &b->queues[RX];
	uint32_t length;
	uint16_t head;

	if (!driver_collect(&q->driver, &head, &length))
		return 0;
	CHECK(length >= PV_VSOCK_HEADER && length <= LENGTH);
	memcpy(packet, place(q, head), length);
	CHECK_EQ(packet->header.len, length - PV_VSOCK_HEADER);
	CHECK_EQ(packet->header.dst_cid, CID);
	add(q, LENGTH, PV_DESC_WRITE);
	return 1;
}

static inline void hear_any(struct bench *b, struct packet *packet)
{
	WAIT_FOR(try_hear(b, packet));
}

/* The next packet is this one. */
static inline struct virtio_vsock_hdr hear(struct bench *b, uint16_t op, uint32_t guest_port)
{
	struct packet packet;

	hear_any(b, &packet);
	CHECK_EQ(packet.header.op, op);
	CHECK_EQ(packet.header.dst_port, guest_port);
	CHECK_EQ(packet.header.src_cid, HOST);
	CHECK_EQ(packet.header.type, VIRTIO_VSOCK_TYPE_STREAM);
	return packet.header;
}

static inline int connect_to(const char *path)
{
	struct sockaddr_un address = address_of(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK_EQ(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static inline int ask(struct bench *b, const char *line)
{
	int fd = connect_to(b->path);

	write_all(fd, line, strlen(line));
	return fd;
}

/* The other end has closed; nothing is left to read. */
static inline void check_closed(int fd)
{
	char byte;

	CHECK(readable(fd, 10000));
	CHECK(read(fd, &byte, 1) <= 0);
}

static inline void check_line(int fd, uint32_t port)
{
	char expected[32], line[32];
	int length = snprintf(expected, sizeof(expected), "OK %u\n", port);

	read_all(fd, line, (size_t)length);
	CHECK_EQ(memcmp(line, expected, (size_t)length), 0);
}

/* A client of the host's that is connected to a port of the guest's. */
static inline int client(struct bench *b, uint32_t guest_port, uint32_t *host_port)
{
	char line[32];
	int fd;

	(void)snprintf(line, sizeof(line), "CONNECT %u\n", guest_port);
	fd = ask(b, line);
	*host_port = hear(b, VIRTIO_VSOCK_OP_REQUEST, guest_port).src_port;
	say(b, VIRTIO_VSOCK_OP_RESPONSE, guest_port, *host_port);
	check_line(fd, *host_port);
	return fd;
}

/* A server of the host's. */
static inline int server(struct bench *b, uint32_t port, int backlog)
{
	char path[80];

	(void)snprintf(path, sizeof(path), "%s_%u", b->path, port);
	return listen_at(path, backlog);
}

static inline void end_server(struct bench *b, int fd, uint32_t port)
{
	char path[80];

	(void)snprintf(path, sizeof(path), "%s_%u", b->path, port);
	close(fd);
	CHECK_EQ(unlink(path), 0);
}

static inline struct pv_vsock_stats stats_of(const struct bench *b)
{
	struct pv_vsock_stats stats;

	pv_vsock_stats(b->vsock, &stats);
	return stats;
}

#endif
