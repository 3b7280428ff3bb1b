/* What a batch of requests costs in system calls, kicks and interrupts, however large it is.
 *
 * The driver has its turn on the disk's thread, when that is about to wait and there is nothing that
 * it could have, so that the counts are the same every time. The disk is /dev/zero, of which io_uring
 * reads at once. */
#include <fcntl.h>
#include <liburing.h>
#include <linux/virtio_blk.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "block/block.h"
#include "tests/block/library.h"
#include "tests/virtio/driver.h"
#include "thread_internal.h"
#include "virtio/irq.h"

enum { SIZE = 256, BYTES = 512, STRIDE = 1024, BATCHES = 8 };

static struct {
	struct driver driver;
	size_t buffers;
	int irq_fd, kick_fd;
	unsigned size;  /* of a batch, in requests */
	unsigned begun; /* batches */
	unsigned calls; /* of io_uring_enter(2), for the one under way */
	unsigned calls_expected;
	atomic_bool started, over;
} rig;

static void offer(void)
{
	uint64_t data = rig.buffers + (uint64_t)rig.driver.free_head * STRIDE;
	struct virtio_blk_outhdr *header = (void *)(rig.driver.ram + data + BYTES);
	const struct pv_desc segments[] = {
		{data + BYTES, sizeof(*header), 0, 0},
		{data, BYTES, PV_DESC_WRITE, 0},
		{data + BYTES + sizeof(*header), 1, PV_DESC_WRITE, 0},
	};

	*header = (struct virtio_blk_outhdr){.type = VIRTIO_BLK_T_IN};
	rig.driver.ram[data + BYTES + sizeof(*header)] = 0xff;
	driver_add_indirect(&rig.driver, segments, 3);
}

static void check_batch(void)
{
	unsigned answered = 0;
	eventfd_t interrupts;
	uint32_t length;
	uint16_t head;

	for (; driver_collect(&rig.driver, &head, &length); answered++) {
		uint64_t data = rig.buffers + (uint64_t)head * STRIDE;

		CHECK_EQ(rig.driver.ram[data + BYTES + sizeof(struct virtio_blk_outhdr)],
		         VIRTIO_BLK_S_OK);
	}
	CHECK_EQ(answered, rig.size);
	CHECK_EQ(rig.calls, rig.calls_expected);
	CHECK_EQ(eventfd_read(rig.irq_fd, &interrupts), 0);
	CHECK_EQ(interrupts, 1);
}

static void take_turn(void)
{
	if (rig.begun > 0)
		check_batch();
	if (rig.begun++ == BATCHES) {
		atomic_store(&rig.over, true);
		return;
	}
	for (unsigned i = 0; i < rig.size; i++)
		offer();
	CHECK_EQ(driver_enable_interrupts(&rig.driver), 0);
	CHECK_EQ(driver_publish(&rig.driver), 1);
	CHECK_EQ(eventfd_write(rig.kick_fd, 1), 0);
	rig.calls = 0;
}

typedef int submit(struct io_uring *ring);
typedef int submit_and_wait(struct io_uring *ring, unsigned count);

int io_uring_submit(struct io_uring *ring)
{
	rig.calls++;
	return CALL("io_uring_submit", submit *, ring);
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
	rig.calls++;
	return CALL("io_uring_submit_and_get_events", submit *, ring);
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned count)
{
	bool started, idle;

	rig.calls++;
	/* Once it is started, nobody else writes to what is watched. */
	do {
		started = atomic_load(&rig.started);
		CHECK(CALL("io_uring_submit_and_get_events", submit *, ring) >= 0);
		idle = io_uring_cq_ready(ring) == 0;
	} while (!started && idle && usleep(100) == 0);
	if (idle && !atomic_load(&rig.over))
		take_turn();
	return CALL("io_uring_submit_and_wait", submit_and_wait *, ring, count);
}

static void run_batches(unsigned size, int event_idx, unsigned calls_expected)
{
	struct pv_block_config config = {
		.fd = open("/dev/zero", O_RDONLY | O_CLOEXEC),
		.flags = PV_BLOCK_READONLY,
		.sectors = 8,
		.offset_align = 1,
		.memory_align = 1,
	};
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct pv_virtio_irq *irq;
	struct pv_block *block;
	struct pv_queue queue;

	memset(&rig, 0, sizeof(rig));
	rig.size = size;
	rig.calls_expected = calls_expected;
	rig.buffers = driver_init(&rig.driver, SIZE, event_idx, 1, (size_t)SIZE * STRIDE);
	rig.irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rig.kick_fd = queue.kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK(config.fd >= 0 && page != MAP_FAILED);
	CHECK_EQ(pv_virtio_irq_new(page, rig.irq_fd, broken_fd, &irq), 0);
	CHECK_EQ(pv_block_new(&config, &block), 0);
	CHECK_EQ(pv_virtqueue_new(rig.driver.memory, &rig.driver.config, &queue.ring), 0);
	CHECK_EQ(pv_block_start(block, 1 << VIRTIO_BLK_F_FLUSH, &queue, 1, irq), 0);
	atomic_store(&rig.started, true);
	WAIT_FOR(atomic_load(&rig.over));
	CHECK_EQ(pv_block_stop(block, PV_FOREVER), 0);
	CHECK(!readable(broken_fd, 0));
	pv_block_free(block);
	pv_virtqueue_free(queue.ring);
	pv_virtio_irq_free(irq);
	driver_destroy(&rig.driver);
	munmap(page, 4096);
	for (unsigned i = 0; i < 4; i++)
		close((int[]){config.fd, broken_fd, rig.irq_fd, rig.kick_fd}[i]);
}

/* One call begins all of them and has their results, one waits for the next kick. */
static void test_a_batch_is_two_calls_and_one_interrupt(void)
{
	for (int event_idx = 0; event_idx < 2; event_idx++) {
		run_batches(1, event_idx, 2);
		run_batches(64, event_idx, 2);
	}
}

/* One more for each time that io_uring's ring is full. */
static void test_a_batch_that_the_ring_has_no_room_for(void)
{
	run_batches(200, 1, 3);
}

int main(void)
{
	RUN(test_a_batch_is_two_calls_and_one_interrupt);
	RUN(test_a_batch_that_the_ring_has_no_room_for);
	return 0;
}
