/* A network device on the bench: rings in memory, and a socket that keeps packets apart, or a
 * stream, in the place of the host's tap. */
#ifndef PV_TESTS_NET_BENCH_H
#define PV_TESTS_NET_BENCH_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "net/internal.h"
#include "sandbox/filter.h"
#include "tests/virtio/guest.h"

enum { BENCH_PAIRS = 3, BENCH_SIZE = QUEUE_SIZE, BENCH_RAM = 8 << 20, BENCH_DATA = 1 << 20 };
enum { RX, TX, CTRL = 2 * BENCH_PAIRS, BENCH_QUEUES };

#define F(name) (UINT64_C(1) << VIRTIO_NET_F_##name)
#define MRG F(MRG_RXBUF)

struct bench {
	struct guest guest;
	struct pv_net *net;
	struct queue queues[BENCH_QUEUES];
	int host[BENCH_PAIRS], own[BENCH_PAIRS]; /* the host's ends and the device's */
};

/* A part of a buffer, at an offset in the data that the bench has room for. */
struct part {
	uint32_t at;
	uint32_t length;
	bool writable;
};

/* That serves every device, or NULL: each has threads of its own. */
static struct pv_iothread *bench_thread;

static const uint8_t BENCH_MAC[6] = {0x02, 0, 0, 0, 0, 0x01};

static inline char *data_at(const struct bench *b, uint32_t offset)
{
	return b->guest.ram + BENCH_DATA + offset;
}

static inline void bench_start(struct bench *b, uint64_t features, uint32_t pairs)
{
	struct pv_net_pair pairs_served[BENCH_PAIRS];
	struct pv_net_activation activation = {
		.features = features | UINT64_C(1) << 32,
		.pairs = pairs_served,
		.count = pairs,
		.irq = b->guest.irq,
		.memory = b->guest.memory,
	};

	for (unsigned i = 0; i < BENCH_QUEUES; i++)
		queue_make(&b->guest, &b->queues[i], i, features >> 29 & 1, true);
	for (unsigned i = 0; i < BENCH_PAIRS; i++)
		pairs_served[i] = (struct pv_net_pair){served(&b->queues[2 * i]),
		                                       served(&b->queues[2 * i + 1])};
	if (features & F(CTRL_VQ))
		activation.ctrl = served(&b->queues[CTRL]);
	CHECK_EQ(pv_net_start(b->net, &activation), 0);
	CHECK_EQ(pv_net_start(b->net, &activation), -EBUSY);
}

static inline void bench_stop(struct bench *b)
{
	CHECK_EQ(pv_net_stop(b->net, PV_FOREVER), 0);
	for (unsigned i = 0; i < BENCH_QUEUES; i++)
		queue_unmake(&b->queues[i]);
}

/* A new pair of sockets for the pair of queues. */
static inline void bench_connect(struct bench *b, uint32_t pair, uint32_t kind)
{
	int type = kind == PV_NET_TAP ? SOCK_SEQPACKET : SOCK_STREAM;
	int ends[2];

	CHECK_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
	b->host[pair] = ends[0];
	b->own[pair] = ends[1];
}

static inline int bench_attach(struct bench *b, uint32_t kind, uint32_t pairs)
{
	struct pv_net_backend backend = {
		.kind = kind, .count = pairs, .fds = b->own, .iothread = bench_thread};

	return pv_net_attach(b->net, &backend, PV_FOREVER);
}

/* A device with a backend for one pair, not started. */
static inline void bench_make(struct bench *b, uint32_t kind, struct pv_net_config config)
{
	memset(b, 0, sizeof(*b));
	guest_make(&b->guest, BENCH_RAM);
	memcpy(config.mac, BENCH_MAC, 6);
	CHECK_EQ(pv_net_new(&config, &b->net), 0);
	for (uint32_t i = 0; i < BENCH_PAIRS; i++)
		bench_connect(b, i, kind);
	CHECK_EQ(bench_attach(b, kind, 1), 0);
}

static inline void bench_unmake(struct bench *b)
{
	bench_stop(b);
	CHECK_EQ(pv_net_detach(b->net, PV_FOREVER), 0);
	pv_net_free(b->net);
	guest_unmake(&b->guest);
	for (uint32_t i = 0; i < BENCH_PAIRS; i++) {
		close(b->host[i]);
		close(b->own[i]);
	}
}

/* The usual: one pair, running on a tap. */
static inline void bench_run(struct bench *b, uint64_t features)
{
	bench_make(b, PV_NET_TAP, (struct pv_net_config){0});
	bench_start(b, features, 1);
}

/* Put a chain into the ring, not yet shown to the device. */
static inline void add(struct queue *q, const struct part *parts, unsigned count)
{
	uint16_t head = q->free;

	for (unsigned i = 0; i < count; i++)
		queue_describe(q, BENCH_DATA + parts[i].at, parts[i].length, parts[i].writable,
		               i + 1 < count);
	queue_put(q, head);
}

static inline void offer(struct queue *q, const struct part *parts, unsigned count)
{
	add(q, parts, count);
	show(q);
	kick(q);
}

/* With event indexes: show what was added, kick if the device asks for it, and ask for one interrupt, when
 * all up to `until` is used. */
static inline void show_until(struct queue *q, uint16_t until)
{
	uint16_t before = q->avail->idx, asked;

	q->avail->ring[BENCH_SIZE] = (uint16_t)(until - 1);
	show(q);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	asked = __atomic_load_n((uint16_t *)&q->used->ring[BENCH_SIZE], __ATOMIC_RELAXED);
	if ((uint16_t)(asked - before) < (uint16_t)(q->offered - before))
		kick(q);
}

/* Wait for that, by its interrupt. */
static inline void await_used(struct bench *b, const struct queue *q, uint16_t until)
{
	while ((int16_t)(until - used(q)) > 0) {
		eventfd_t value;

		CHECK(readable(b->guest.irq_fd, 10000));
		(void)eventfd_read(b->guest.irq_fd, &value);
	}
}

static inline uint32_t written(const struct queue *q, unsigned position)
{
	return q->used->ring[position % BENCH_SIZE].len;
}

/* `count` receive buffers of the same size, one behind the other from `at` on. */
static inline void offer_buffers(struct bench *b, unsigned queue, unsigned count, uint32_t at,
                                 uint32_t length)
{
	struct queue *q = &b->queues[queue];

	for (unsigned i = 0; i < count; i++)
		add(q, &(struct part){at + i * length, length, true}, 1);
	show(q);
	kick(q);
}

/* A frame to a unicast address, and then bytes by the seed. */
static inline void make_frame(uint8_t *frame, uint32_t length, unsigned seed)
{
	fill(frame, length, seed);
	if (length >= 6)
		memcpy(frame, BENCH_MAC, 6);
}

/* Let the host send a packet; the last field of its header is not the tap's to write. */
static inline void host_sends(struct bench *b, const uint8_t *frame, uint32_t length,
                              struct virtio_net_hdr_v1 header)
{
	struct iovec iov[] = {{&header, PV_NET_HEADER}, {(void *)(uintptr_t)frame, length}};

	header.num_buffers = 0xffff;
	CHECK_EQ(writev(b->host[0], iov, 2), PV_NET_HEADER + length);
}

/* The next packet that reaches the host; its bytes with the header. */
static inline ssize_t host_gets(struct bench *b, void *packet, size_t room)
{
	CHECK(readable(b->host[0], 10000));
	return read(b->host[0], packet, room);
}

/* Offer a packet in one segment, its header at `at`. */
static inline void offer_packet(struct bench *b, uint32_t at, struct virtio_net_hdr_v1 header,
                                const uint8_t *frame, uint32_t length)
{
	memcpy(data_at(b, at), &header, PV_NET_HEADER);
	memcpy(data_at(b, at) + PV_NET_HEADER, frame, length);
	offer(&b->queues[TX], &(struct part){at, PV_NET_HEADER + length, false}, 1);
}

/* Offer the same packet so many times. */
static inline void offer_packets(struct bench *b, unsigned count, const uint8_t *frame,
                                 uint32_t length)
{
	struct queue *q = &b->queues[TX];

	memset(data_at(b, 0), 0, PV_NET_HEADER);
	memcpy(data_at(b, PV_NET_HEADER), frame, length);
	for (unsigned i = 0; i < count; i++)
		add(q, &(struct part){0, PV_NET_HEADER + length, false}, 1);
	show(q);
	kick(q);
}

static inline struct pv_net_stats stats(const struct bench *b)
{
	struct pv_net_stats stats;

	pv_net_stats(b->net, &stats);
	return stats;
}

#define STAT(b, field) (stats(b).field)

static inline void check_broken(struct bench *b, const char *why)
{
	guest_check_broken(&b->guest, why);
}

/* The monitor is told that the host's side has gone, once. */
static inline void check_loss(struct bench *b)
{
	CHECK(readable(b->guest.broken_fd, 10000));
	CHECK_EQ(pv_net_take_lost(b->net), 1);
	CHECK_EQ(pv_net_take_lost(b->net), 0);
	check_reason(b->guest.irq, NULL);
}

/* With threads of each device's own, and on one that is shared, of either engine. */
static inline void on_each_thread(void (*tests)(void))
{
	pv_engine_make *makes[] = {pv_uring_new, pv_pool_new};

	tests();
	for (unsigned i = 0; i < 2; i++) {
		printf("shared, engine %u\n", i);
		CHECK_EQ(pv_iothread_new(PV_SANDBOX_IOTHREAD, "shared", &bench_thread), 0);
		pv_iothread_prefer(bench_thread, makes[i]);
		tests();
		CHECK_EQ(pv_iothread_tid(bench_thread), 0);
		pv_iothread_free(bench_thread);
		bench_thread = NULL;
	}
}

static struct queue *endless;

static inline int send_endlessly(struct pv_net_port *port, const struct iovec *iov, int count)
{
	(void)port;
	(void)iov;
	(void)count;
	add(endless, &(struct part){0, PV_NET_HEADER + 60, false}, 1);
	show(endless);
	return 0;
}

/* Have a host that is so fast that the driver has always more to send; `ops` is room for that. */
static inline void bench_is_endless(struct bench *b, struct pv_net_port_ops *ops)
{
	endless = &b->queues[TX];
	*ops = *b->net->ports[0].ops;
	ops->send = send_endlessly;
	b->net->ports[0].ops = ops;
}

/* A packet of the driver still goes through. */
static inline void check_lives(struct bench *b)
{
	uint8_t frame[60], packet[128];
	uint16_t before = used(&b->queues[TX]);

	make_frame(frame, sizeof(frame), 77);
	offer_packet(b, 0x400000, (struct virtio_net_hdr_v1){0}, frame, sizeof(frame));
	CHECK_EQ(host_gets(b, packet, sizeof(packet)), PV_NET_HEADER + 60);
	CHECK_EQ(memcmp(packet + PV_NET_HEADER, frame, 60), 0);
	WAIT_FOR(used(&b->queues[TX]) == (uint16_t)(before + 1));
}

#endif
