/* What a request costs the block device's threads: a driver on another thread keeps so many random
 * 4 KiB reads of a file in flight, and waits for an interrupt when it has nothing else to do.
 *
 *     $(.venv/bin/python -m pyvirt.native.program whole native/tests/block/bench_block.c) \
 *         FILE io_uring|threads direct|cached DEPTH SECONDS [empty|full]
 *
 * (with an overlay in memory, that has nothing of the file or all of it) prints "REQUESTS_PER_SECOND CPU_NS_PER_REQUEST REQUESTS_PER_KICK REQUESTS_PER_INTERRUPT", the
 * second of the device's threads alone. */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "block/block.h"
#include "block/overlay_internal.h"
#include "tests/virtio/driver.h"
#include "thread_internal.h"
#include "virtio/irq.h"
#include "virtio/virtqueue.h"

enum { SIZE = 256, BYTES = 4096, STRIDE = 2 * BYTES };

struct bench {
	struct driver driver;
	size_t buffers;
	struct pv_virtio_irq *irq;
	int irq_fd, kick_fd;
	uint64_t sectors, random;
	uint64_t offered, answered, kicks, interrupts;
};

static uint64_t next_random(struct bench *b)
{
	b->random ^= b->random << 13;
	b->random ^= b->random >> 7;
	b->random ^= b->random << 17;
	return b->random;
}

/* The data is aligned as a page cache's is; the header and the status follow it. */
static void offer(struct bench *b)
{
	uint64_t data = b->buffers + (uint64_t)b->driver.free_head * STRIDE;
	struct virtio_blk_outhdr *header = (void *)(b->driver.ram + data + BYTES);
	const struct pv_desc segments[] = {
		{data + BYTES, sizeof(*header), 0, 0},
		{data, BYTES, PV_DESC_WRITE, 0},
		{data + BYTES + sizeof(*header), 1, PV_DESC_WRITE, 0},
	};

	*header = (struct virtio_blk_outhdr){
		.type = VIRTIO_BLK_T_IN,
		.sector = next_random(b) % (b->sectors / 8) * 8,
	};
	b->driver.ram[data + BYTES + sizeof(*header)] = 0xff;
	driver_add_indirect(&b->driver, segments, 3);
	b->offered++;
}

static void collect(struct bench *b)
{
	uint32_t length;
	uint16_t head;

	while (driver_collect(&b->driver, &head, &length)) {
		uint64_t data = b->buffers + (uint64_t)head * STRIDE;

		CHECK_EQ(length, BYTES + 1);
		CHECK_EQ(b->driver.ram[data + BYTES + 16], VIRTIO_BLK_S_OK);
		b->answered++;
	}
}

static void wait_interrupt(struct bench *b)
{
	eventfd_t value;

	CHECK(readable(b->irq_fd, 10000));
	CHECK_EQ(eventfd_read(b->irq_fd, &value), 0);
	b->interrupts++;
	pv_virtio_irq_ack(b->irq, 1);
}

static void run(struct bench *b, uint64_t depth, uint64_t end)
{
	while (now_ns() < end || b->answered < b->offered) {
		while (b->offered - b->answered < depth && now_ns() < end)
			offer(b);
		if (driver_publish(&b->driver)) {
			CHECK_EQ(eventfd_write(b->kick_fd, 1), 0);
			b->kicks++;
		}
		if (b->answered < b->offered && !driver_enable_interrupts(&b->driver))
			wait_interrupt(b);
		collect(b);
	}
}

static double cpu_ns(int who)
{
	struct rusage usage;

	CHECK_EQ(getrusage(who, &usage), 0);
	return 1e9 * (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       1e3 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static double device_cpu_ns(void)
{
	return cpu_ns(RUSAGE_SELF) - cpu_ns(RUSAGE_THREAD);
}

/* An overlay in memory; `full`: all that is read is there, and not in the file. */
static struct pv_overlay *make_overlay(uint64_t sectors, bool full)
{
	char data[1 << 16] = {1};
	struct pv_overlay *overlay;
	int fd = memfd_create("overlay", MFD_CLOEXEC);

	CHECK_EQ(pv_overlay_new(fd, sectors, NULL, &overlay), 0);
	for (uint64_t at = 0; full && at < sectors * 512; at += sizeof(data)) {
		CHECK_EQ(pwrite(fd, data, sizeof(data), (off_t)at), sizeof(data));
		pv_overlay_mark(overlay, at, at + sizeof(data));
	}
	return overlay;
}

static void open_device(struct bench *b, char **argv, struct pv_block **block)
{
	int direct = strcmp(argv[3], "direct") == 0;
	struct pv_block_config config = {
		.fd = open(argv[1], O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0)),
		.flags = PV_BLOCK_READONLY |
		         (strcmp(argv[2], "threads") == 0 ? PV_BLOCK_THREADS : 0),
		.offset_align = 1,
		.memory_align = 1,
	};
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(config.fd >= 0 && page != MAP_FAILED);
	config.sectors = (uint64_t)lseek(config.fd, 0, SEEK_END) / 512;
	b->sectors = config.sectors;
	if (direct)
		CHECK_EQ(pv_block_alignment(config.fd, &config.offset_align, &config.memory_align),
		         0);
	if (argv[6])
		config.overlay = make_overlay(config.sectors, strcmp(argv[6], "full") == 0);
	b->random = 88172645463325252;
	b->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	b->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK_EQ(pv_virtio_irq_new(page, b->irq_fd, eventfd(0, EFD_CLOEXEC), &b->irq), 0);
	CHECK_EQ(pv_block_new(&config, block), 0);
}

int main(int argc, char **argv)
{
	struct bench b = {0};
	struct pv_block *block;
	struct pv_queue queue;
	uint64_t start;
	double before, spent;

	CHECK(argc == 6 || argc == 7);
	b.buffers = driver_init(&b.driver, SIZE, 1, 1, (size_t)(SIZE + 1) * STRIDE);
	b.buffers = (b.buffers + BYTES - 1) / BYTES * BYTES;
	open_device(&b, argv, &block);
	CHECK_EQ(pv_virtqueue_new(b.driver.memory, &b.driver.config, &queue.ring), 0);
	queue.kick_fd = b.kick_fd;
	CHECK_EQ(pv_block_start(block, 1 << VIRTIO_BLK_F_FLUSH, &queue, 1, b.irq), 0);
	before = device_cpu_ns();
	start = now_ns();
	run(&b, (uint64_t)atoi(argv[4]), start + (uint64_t)(atof(argv[5]) * 1e9));
	spent = (double)(now_ns() - start);
	printf("%.0f %.0f %.2f %.2f\n", (double)b.answered * 1e9 / spent,
	       (device_cpu_ns() - before) / (double)b.answered, (double)b.answered / (double)b.kicks,
	       (double)b.answered / (double)b.interrupts);
	CHECK_EQ(pv_block_stop(block, PV_FOREVER), 0);
	pv_block_free(block);
	pv_virtqueue_free(queue.ring);
	driver_destroy(&b.driver);
	return 0;
}
