/* What packets cost a NIC's thread on a tap of the host: processor time and the kernel's part of it,
 * for small and large ones, one by one and in bursts. As root, for the tap is made in a network
 * namespace of the program's own:
 *
 *     $(.venv/bin/python -m pyvirt.native.program plain native/tests/net/bench_tap.c) PACKETS
 *
 * prints a line for each kind of traffic. Driver, thread and host are on one processor, so that bursts
 * stay together; `strace -f -c` counts the calls. The host drops what it gets: its protocol is unknown.
 * What it sends are segments of TCP, through a packet socket. */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "tests/net/bench.h"

enum { SMALL = 60, FULL = 1514, LARGE = 65000, PIECE = 4096, BUFFER = 1536, BURST = 32 };

struct traffic {
	const char *name;
	void (*step)(struct bench *b, uint32_t length, unsigned burst);
	uint32_t length;
	unsigned burst;
};

static int host;
static uint8_t frame[LARGE];

static void make_tap(struct bench *b)
{
	struct ifreq request = {.ifr_name = "tap0", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = 0};
	int header = PV_NET_HEADER, size = 64 << 20;

	CHECK_EQ(unshare(CLONE_NEWNET), 0);
	b->own[0] = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	CHECK_EQ(ioctl(b->own[0], TUNSETIFF, &request), 0);
	CHECK_EQ(ioctl(b->own[0], TUNSETVNETHDRSZ, &header), 0);
	host = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	CHECK(host >= 0);
	CHECK_EQ(ioctl(host, SIOCGIFINDEX, &request), 0);
	address.sll_ifindex = request.ifr_ifindex;
	CHECK_EQ(bind(host, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(setsockopt(host, SOL_PACKET, PACKET_VNET_HDR, &(int){1}, sizeof(int)), 0);
	CHECK_EQ(setsockopt(host, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)), 0);
	request.ifr_flags = IFF_UP | IFF_NOARP;
	CHECK_EQ(ioctl(host, SIOCSIFFLAGS, &request), 0);
}

/* A segment of TCP as the host's stack would give it to a link that splits it. */
static void make_segment(uint32_t length)
{
	const uint8_t ip[20] = {0x45, 0, (uint8_t)((length - 14) >> 8), (uint8_t)(length - 14),
	                        0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2};

	memset(frame, 0, sizeof(frame));
	memcpy(frame, BENCH_MAC, 6);
	frame[12] = 8;
	memcpy(frame + 14, ip, sizeof(ip));
	frame[14 + 20 + 12] = 5 << 4;
}

static void host_sends_segment(uint32_t length)
{
	struct virtio_net_hdr header = {
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
	struct iovec iov[] = {{&header, sizeof(header)}, {frame, length}};
	struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

	if (length > FULL) {
		header.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
		header.gso_size = 1448;
		header.hdr_len = 54;
	}
	CHECK_EQ(sendmsg(host, &message, 0), sizeof(header) + length);
}

static void send_burst(struct bench *b, uint32_t length, unsigned burst)
{
	struct virtio_net_hdr_v1 header = {0};
	struct queue *q = &b->queues[TX];

	if (length > FULL)
		header = (struct virtio_net_hdr_v1){.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		                                    .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
		                                    .hdr_len = 54,
		                                    .gso_size = 1448,
		                                    .csum_start = 34,
		                                    .csum_offset = 16};
	memcpy(data_at(b, 0), &header, PV_NET_HEADER);
	memset(data_at(b, PV_NET_HEADER), 0x88, LARGE);
	for (unsigned i = 0; i < burst; i++) {
		struct part parts[1 + LARGE / PIECE + 1];
		unsigned count = 0;

		for (uint32_t at = 0; at < PV_NET_HEADER + length; at += PIECE)
			parts[count++] = (struct part){
				at, at + PIECE < PV_NET_HEADER + length ? PIECE : PV_NET_HEADER + length - at,
				false};
		add(q, parts, count);
	}
	show_until(q, q->offered);
	await_used(b, q, q->offered);
}

/* So many that none is left over, but for those that keep the thread waiting for the host. */
static void receive_burst(struct bench *b, uint32_t length, unsigned burst)
{
	struct queue *q = &b->queues[RX];
	unsigned buffers = (length + PV_NET_HEADER + BUFFER - 1) / BUFFER;
	uint16_t until = (uint16_t)(used(q) + burst * buffers);

	while ((uint16_t)(q->offered - used(q)) < BENCH_SIZE)
		add(q, &(struct part){q->offered % BENCH_SIZE * BUFFER, BUFFER, true}, 1);
	show_until(q, until);
	for (unsigned i = 0; i < burst; i++)
		host_sends_segment(length);
	await_used(b, q, until);
}

static uint64_t thread_ns(const struct bench *b)
{
	struct timespec time;
	clockid_t clock;

	CHECK_EQ(pthread_getcpuclockid(b->net->workers[0]->thread.handle, &clock), 0);
	CHECK_EQ(clock_gettime(clock, &time), 0);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static const struct traffic TRAFFIC[] = {
	{"out, 60 bytes", send_burst, SMALL, 1},
	{"out, 60 bytes, bursts", send_burst, SMALL, BURST},
	{"out, 1514 bytes, bursts", send_burst, FULL, BURST},
	{"out, 65000 bytes", send_burst, LARGE, 1},
	{"in, 60 bytes", receive_burst, SMALL, 1},
	{"in, 60 bytes, bursts", receive_burst, SMALL, BURST},
	{"in, 1514 bytes, bursts", receive_burst, FULL, BURST},
	{"in, 65000 bytes", receive_burst, LARGE, 1},
};

int main(int argc, char **argv)
{
	unsigned long packets = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000;
	int only = argc > 2 ? atoi(argv[2]) : -1;
	struct bench b;
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((size_t)sched_getcpu(), &one);
	CHECK_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
	memset(&b, 0, sizeof(b));
	guest_make(&b.guest, BENCH_RAM);
	CHECK_EQ(pv_net_new(&(struct pv_net_config){0}, &b.net), 0);
	make_tap(&b);
	CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
	bench_start(&b, MRG | F(CSUM) | F(HOST_TSO4) | F(GUEST_CSUM) | F(GUEST_TSO4) | UINT64_C(1) << 29, 1);
	for (unsigned i = 0; i < sizeof(TRAFFIC) / sizeof(TRAFFIC[0]); i++) {
		const struct traffic *t = &TRAFFIC[i];
		uint64_t before;
		unsigned long done = 0;

		if (only >= 0 && (unsigned)only != i)
			continue;
		make_segment(t->length);
		t->step(&b, t->length, t->burst);
		before = thread_ns(&b);
		for (; done < packets; done += t->burst)
			t->step(&b, t->length, t->burst);
		printf("%-24s %6.0f ns a packet\n", t->name, (double)(thread_ns(&b) - before) / (double)done);
	}
	bench_stop(&b);
	return 0;
}
