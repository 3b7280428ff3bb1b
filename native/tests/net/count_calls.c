/* Bursts of packets for a NIC's own thread, each when that waits, so that the calls it makes for them
 * depend on no scheduling: tests/native/test_net_calls.py counts those between two getppid().
 *
 *     count_calls out|in|starved PACKETS BURSTS
 *
 * `in` is for bursts of one: the first packet of a burst would wake the thread. `starved` has the packets
 * wait for the driver's buffers. */
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

static void goes_out(struct bench *b, unsigned packets)
{
	struct queue *q = &b->queues[TX];
	uint8_t packet[PV_NET_HEADER + FRAME];

	for (unsigned i = 0; i < packets; i++)
		add(q, &(struct part){0x80000, sizeof(packet), false}, 1);
	show_until(q, q->offered);
	await_used(b, q, q->offered);
	for (unsigned i = 0; i < packets; i++)
		CHECK_EQ(host_gets(b, packet, sizeof(packet)), sizeof(packet));
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

int main(int argc, char **argv)
{
	void (*step)(struct bench *, unsigned);
	struct bench b;
	pid_t thread;

	CHECK_EQ(argc, 4);
	step = !strcmp(argv[1], "out") ? goes_out : !strcmp(argv[1], "in") ? comes_in : comes_in_first;
	make_frame(frame, FRAME, 1);
	bench_run(&b, MRG | UINT64_C(1) << 29);
	thread = other_thread();
	if (step != comes_in_first) {
		add_buffers(&b.queues[RX], BENCH_SIZE / 2);
		show(&b.queues[RX]);
		kick(&b.queues[RX]);
		WAIT_FOR(STAT(&b, kicks) == 1);
	}
	mark(thread);
	for (int i = 0; i < atoi(argv[3]); i++) {
		step(&b, (unsigned)atoi(argv[2]));
		WAIT_FOR(waits(thread));
	}
	mark(thread);
	bench_unmake(&b);
	return 0;
}
