/* A network device on the bench: rings in memory, and a socket that keeps packets apart, or a
 * stream, in the place of the host's tap. */
#ifndef PV_TESTS_NET_BENCH_H
#define PV_TESTS_NET_BENCH_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "net/internal.h"
#include "tests/check.h"
#include "tests/virtio/reason.h"
#include "virtio/irq.h"
#include "virtio/virtqueue_internal.h"

enum { BENCH_PAIRS = 3, BENCH_SIZE = 64, BENCH_RAM = 8 << 20, BENCH_DATA = 1 << 20 };
enum { RX, TX, CTRL = 2 * BENCH_PAIRS, BENCH_QUEUES };

#define F(name) (UINT64_C(1) << VIRTIO_NET_F_##name)
#define MRG F(MRG_RXBUF)

struct bench_queue {
	struct pv_virtqueue *ring;
	struct pv_virtqueue_config config;
	struct pv_desc *desc;
	struct pv_avail *avail;
	struct pv_used *used;
	int kick_fd;
	uint16_t free; /* the next descriptor to use */
	uint16_t offered;
};

struct bench {
	char *ram;
	void *page;
	int irq_fd, broken_fd;
	struct pv_memory *memory;
	struct pv_virtio_irq *irq;
	struct pv_net *net;
	struct bench_queue queues[BENCH_QUEUES];
	int host[BENCH_PAIRS], own[BENCH_PAIRS]; /* the host's ends and the device's */
};

/* A part of a buffer, at an offset in the data that the bench has room for. */
struct part {
	uint32_t at;
	uint32_t length;
	bool writable;
};

static const uint8_t BENCH_MAC[6] = {0x02, 0, 0, 0, 0, 0x01};

static inline char *data_at(const struct bench *b, uint32_t offset)
{
	return b->ram + BENCH_DATA + offset;
}

static inline void make_queue(struct bench *b, unsigned index, uint64_t features)
{
	struct bench_queue *q = &b->queues[index];
	uint64_t base = index * 0x4000;

	q->config = (struct pv_virtqueue_config){
		.desc = base,
		.avail = base + 0x1000,
		.used = base + 0x2000,
		.size = BENCH_SIZE,
		.event_idx = (uint8_t)(features >> 29 & 1),
		.indirect = 1,
	};
	memset(b->ram + base, 0, 0x4000);
	CHECK_EQ(pv_virtqueue_new(b->memory, &q->config, &q->ring), 0);
	q->desc = (struct pv_desc *)(b->ram + q->config.desc);
	q->avail = (struct pv_avail *)(b->ram + q->config.avail);
	q->used = (struct pv_used *)(b->ram + q->config.used);
	q->free = q->offered = 0;
	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static inline void bench_start(struct bench *b, uint64_t features, uint32_t pairs)
{
	struct pv_net_pair served[BENCH_PAIRS];
	struct pv_net_activation activation = {
		.features = features | UINT64_C(1) << 32,
		.pairs = served,
		.count = pairs,
		.irq = b->irq,
		.memory = b->memory,
	};

	for (unsigned i = 0; i < BENCH_QUEUES; i++)
		make_queue(b, i, features);
	for (unsigned i = 0; i < BENCH_PAIRS; i++)
		served[i] = (struct pv_net_pair){
			{b->queues[2 * i].ring, b->queues[2 * i].kick_fd},
			{b->queues[2 * i + 1].ring, b->queues[2 * i + 1].kick_fd},
		};
	if (features & F(CTRL_VQ))
		activation.ctrl =
			(struct pv_queue){b->queues[CTRL].ring, b->queues[CTRL].kick_fd};
	CHECK_EQ(pv_net_start(b->net, &activation), 0);
	CHECK_EQ(pv_net_start(b->net, &activation), -EBUSY);
}

static inline void bench_stop(struct bench *b)
{
	CHECK_EQ(pv_net_stop(b->net, PV_FOREVER), 0);
	for (unsigned i = 0; i < BENCH_QUEUES && b->queues[i].ring; i++) {
		pv_virtqueue_free(b->queues[i].ring);
		close(b->queues[i].kick_fd);
		b->queues[i].ring = NULL;
	}
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
	struct pv_net_backend backend = {.kind = kind, .count = pairs, .fds = b->own};

	return pv_net_attach(b->net, &backend, PV_FOREVER);
}

/* A device with a backend for one pair, not started. */
static inline void bench_make(struct bench *b, uint32_t kind, struct pv_net_config config)
{
	memset(b, 0, sizeof(*b));
	b->ram = mmap(NULL, BENCH_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	b->page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(b->ram != MAP_FAILED && b->page != MAP_FAILED);
	CHECK_EQ(pv_memory_new(&b->memory), 0);
	CHECK_EQ(pv_memory_add(b->memory, 0, BENCH_RAM, b->ram), 0);
	b->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	b->broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK_EQ(pv_virtio_irq_new(b->page, b->irq_fd, b->broken_fd, &b->irq), 0);
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
	pv_virtio_irq_free(b->irq);
	pv_memory_free(b->memory);
	munmap(b->page, 4096);
	munmap(b->ram, BENCH_RAM);
	for (uint32_t i = 0; i < BENCH_PAIRS; i++) {
		close(b->host[i]);
		close(b->own[i]);
	}
	close(b->irq_fd);
	close(b->broken_fd);
}

/* The usual: one pair, running on a tap. */
static inline void bench_run(struct bench *b, uint64_t features)
{
	bench_make(b, PV_NET_TAP, (struct pv_net_config){0});
	bench_start(b, features, 1);
}

static inline void show(struct bench_queue *q)
{
	__atomic_store_n(&q->avail->idx, q->offered, __ATOMIC_RELEASE);
}

/* Put a chain into the ring, not yet shown to the device. */
static inline void add(struct bench_queue *q, const struct part *parts, unsigned count)
{
	uint16_t head = q->free;

	for (unsigned i = 0; i < count; i++) {
		struct pv_desc *desc = &q->desc[q->free];

		q->free = (uint16_t)((q->free + 1) % BENCH_SIZE);
		desc->address = BENCH_DATA + parts[i].at;
		desc->length = parts[i].length;
		desc->flags = (uint16_t)((parts[i].writable ? PV_DESC_WRITE : 0) |
		                         (i + 1 < count ? PV_DESC_NEXT : 0));
		desc->next = q->free;
	}
	q->avail->ring[q->offered % BENCH_SIZE] = head;
	q->offered++;
}

static inline void kick(struct bench_queue *q)
{
	CHECK_EQ(eventfd_write(q->kick_fd, 1), 0);
}

static inline void offer(struct bench_queue *q, const struct part *parts, unsigned count)
{
	add(q, parts, count);
	show(q);
	kick(q);
}

static inline uint16_t used(const struct bench_queue *q)
{
	return __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE);
}

static inline uint32_t written(const struct bench_queue *q, unsigned position)
{
	return q->used->ring[position % BENCH_SIZE].len;
}

/* `count` receive buffers of the same size, one behind the other from `at` on. */
static inline void offer_buffers(struct bench *b, unsigned queue, unsigned count, uint32_t at,
                                 uint32_t length)
{
	struct bench_queue *q = &b->queues[queue];

	for (unsigned i = 0; i < count; i++)
		add(q, &(struct part){at + i * length, length, true}, 1);
	show(q);
	kick(q);
}

static inline void fill(uint8_t *data, uint32_t length, unsigned seed)
{
	for (uint32_t i = 0; i < length; i++)
		data[i] = (uint8_t)(i * 7 + i / 256 + seed);
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
	struct bench_queue *q = &b->queues[TX];

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
	CHECK(readable(b->broken_fd, 10000));
	check_reason(b->irq, why);
	CHECK(__atomic_load_n((uint32_t *)((char *)b->page + 0x70), __ATOMIC_ACQUIRE) & 64);
}

/* The monitor is told that the host's side has gone, once. */
static inline void check_loss(struct bench *b)
{
	CHECK(readable(b->broken_fd, 10000));
	CHECK_EQ(pv_net_take_lost(b->net), 1);
	CHECK_EQ(pv_net_take_lost(b->net), 0);
	check_reason(b->irq, NULL);
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
