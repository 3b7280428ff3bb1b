/* Bursts of packets for a NIC's own thread, each when that waits, so that the calls it makes for them
 * depend on no scheduling: tests/native/test_net_calls.py counts those between two getppid().
 *
 *     count_calls out|gone|in|starved PACKETS BURSTS
 *
 * Of `gone` the host is, and of `out` it was slow before. `in` is for bursts of one: the first packet of a
 * burst would wake the thread. `starved` has the packets wait for the driver's buffers. */
#include <dirent.h>
#include <sys/syscall.h>

#include "tests/net/bench.h"

enum { BUFFER = 1536, FRAME = 60 };

static uint8_t frame[FRAME];

/* Of the only thread beside this one. */
static pid_t other_thread(void)
{
	DIR *tasks = opendir("/proc/self/task");
	const struct dirent *entry;
	pid_t found = 0;

	CHECK(tasks);
	while ((entry = readdir(tasks)))
		if (atoi(entry->d_name) != 0 && atoi(entry->d_name) != gettid())
			found = atoi(entry->d_name);
	closedir(tasks);
	return found;
}

static bool waits(pid_t thread)
{
	char path[64];
	FILE *file;
	int call = -1;

	(void)snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", thread);
	file = fopen(path, "r");
	CHECK(file);
	/* "running", if it is in none. */
	if (fscanf(file, "%d", &call) != 1)
		call = -1;
	fclose(file);
	return call == SYS_epoll_wait;
}

static void mark(pid_t thread)
{
	WAIT_FOR(waits(thread));
	(void)getppid();
}

static void add_buffers(struct queue *q, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		add(q, &(struct part){q->offered % BENCH_SIZE * BUFFER, BUFFER, true}, 1);
}

static void offer_burst(struct bench *b, unsigned packets)
{
	struct queue *q = &b->queues[TX];

	for (unsigned i = 0; i < packets; i++)
		add(q, &(struct part){0x80000, PV_NET_HEADER + FRAME, false}, 1);
	show_until(q, q->offered);
}

static void take_burst(struct bench *b, unsigned packets)
{
	uint8_t packet[PV_NET_HEADER + FRAME];

	for (unsigned i = 0; i < packets; i++)
		CHECK_EQ(host_gets(b, packet, sizeof(packet)), sizeof(packet));
}

static void goes_out(struct bench *b, unsigned packets)
{
	offer_burst(b, packets);
	await_used(b, &b->queues[TX], b->queues[TX].offered);
	take_burst(b, packets);
}

static void goes_nowhere(struct bench *b, unsigned packets)
{
	offer_burst(b, packets);
	await_used(b, &b->queues[TX], b->queues[TX].offered);
}

/* Have the thread wait for a host that has taken too little. */
static void block(struct bench *b)
{
	CHECK_EQ(setsockopt(b->own[0], SOL_SOCKET, SO_SNDBUF, &(int){1}, sizeof(int)), 0);
	offer_burst(b, BENCH_SIZE);
	WAIT_FOR(STAT(b, tx_blocked) > 0);
	take_burst(b, BENCH_SIZE);
	await_used(b, &b->queues[TX], b->queues[TX].offered);
	CHECK_EQ(setsockopt(b->own[0], SOL_SOCKET, SO_SNDBUF, &(int){1 << 18}, sizeof(int)), 0);
}

static void lose_host(struct bench *b)
{
	CHECK_EQ(shutdown(b->host[0], SHUT_RDWR), 0);
	check_loss(b);
}

static void comes_in(struct bench *b, unsigned packets)
{
	struct queue *q = &b->queues[RX];
	uint16_t until = (uint16_t)(used(q) + packets);

	add_buffers(q, packets);
	show_until(q, until);
	for (unsigned i = 0; i < packets; i++)
		host_sends(b, frame, FRAME, (struct virtio_net_hdr_v1){0});
	await_used(b, q, until);
}

static void comes_in_first(struct bench *b, unsigned packets)
{
	struct queue *q = &b->queues[RX];

	for (unsigned i = 0; i < packets; i++)
		host_sends(b, frame, FRAME, (struct virtio_net_hdr_v1){0});
	add_buffers(q, packets);
	show_until(q, q->offered);
	await_used(b, q, q->offered);
}

static const struct way {
	const char *name;
	void (*first)(struct bench *b); /* or NULL */
	void (*step)(struct bench *b, unsigned packets);
	unsigned buffers;
} WAYS[] = {
	{"out", block, goes_out, BENCH_SIZE / 2},
	{"gone", lose_host, goes_nowhere, BENCH_SIZE / 2},
	{"in", NULL, comes_in, BENCH_SIZE / 2},
	{"starved", NULL, comes_in_first, 0},
};

int main(int argc, char **argv)
{
	const struct way *way = WAYS;
	struct bench b;
	pid_t thread;

	CHECK_EQ(argc, 4);
	while (strcmp(way->name, argv[1]) != 0)
		CHECK(++way < WAYS + sizeof(WAYS) / sizeof(WAYS[0]));
	make_frame(frame, FRAME, 1);
	bench_run(&b, MRG | UINT64_C(1) << 29);
	thread = other_thread();
	if (way->buffers > 0) {
		add_buffers(&b.queues[RX], way->buffers);
		show(&b.queues[RX]);
		kick(&b.queues[RX]);
		WAIT_FOR(STAT(&b, kicks) == 1);
	}
	if (way->first)
		way->first(&b);
	mark(thread);
	for (int i = 0; i < atoi(argv[3]); i++) {
		way->step(&b, (unsigned)atoi(argv[2]));
		WAIT_FOR(waits(thread));
	}
	mark(thread);
	bench_unmake(&b);
	return 0;
}
