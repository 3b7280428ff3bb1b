/* A socket device whose queues the kernel serves: what it is told, where it begins and ends, and that
 * nothing is left of what fails half-way. */
#include "vsock/vhost.h"

#include "tests/files.h"
#include "tests/virtio/fake_vhost.h"
#include "tests/virtio/guest.h"
#include "thread_internal.h"

#define RING_FEATURES (UINT64_C(1) << 28 | UINT64_C(1) << 29 | UINT64_C(1) << 32)
#define NOT_OF_RINGS (UINT64_C(1) << 40) /* the transport's, of which the kernel is not told */

enum { RX, TX, QUEUES, CID = 42, RAM = 1 << 20 };

struct bench {
	struct guest guest;
	struct queue queues[QUEUES];
	struct pv_vhost_vsock *vsock;
};

static void make(struct bench *b)
{
	memset(b, 0, sizeof(*b));
	guest_make(&b->guest, RAM);
	fake_offers = RING_FEATURES;
	CHECK_EQ(pv_vhost_vsock_new(fake_make(), CID, &b->vsock), 0);
	CHECK(fakes[0].owned);
	CHECK_EQ(fakes[0].cid, CID);
	for (unsigned i = 0; i < QUEUES; i++)
		queue_make(&b->guest, &b->queues[i], i, true, true);
}

static void unmake(struct bench *b)
{
	CHECK_EQ(pv_vhost_vsock_stop(b->vsock, PV_FOREVER), 0);
	CHECK(!fakes[0].running);
	pv_vhost_vsock_free(b->vsock);
	for (unsigned i = 0; i < QUEUES; i++)
		queue_unmake(&b->queues[i]);
	guest_unmake(&b->guest);
	fake_unmake_all();
}

static int start(struct bench *b)
{
	struct pv_vhost_vsock_activation activation = {
		.features = RING_FEATURES | NOT_OF_RINGS,
		.rx = served(&b->queues[RX]),
		.tx = served(&b->queues[TX]),
		.irq = b->guest.irq,
		.memory = b->guest.memory,
	};

	return pv_vhost_vsock_start(b->vsock, &activation);
}

static void check_places(const struct bench *b, uint16_t rx, uint16_t tx)
{
	const uint16_t expected[] = {rx, tx};

	for (unsigned i = 0; i < QUEUES; i++) {
		uint16_t avail, used_next;

		pv_virtqueue_save(b->queues[i].ring, &avail, &used_next);
		CHECK_EQ(avail, expected[i]);
		CHECK_EQ(used_next, expected[i]);
	}
}

static void test_the_kernel_is_told_of_all(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(start(&b), 0);
	CHECK_EQ(start(&b), -EBUSY);
	CHECK(fakes[0].running);
	CHECK_EQ(fakes[0].features, RING_FEATURES);
	CHECK_EQ(fakes[0].region_count, 1);
	CHECK_EQ(fakes[0].regions[0].memory_size, RAM);
	for (unsigned i = 0; i < QUEUES; i++) {
		const struct fake_ring *ring = &fakes[0].rings[i];
		eventfd_t value;

		CHECK_EQ(ring->size, QUEUE_SIZE);
		CHECK_EQ(ring->address.desc_user_addr, (uintptr_t)b.queues[i].desc);
		CHECK_EQ(ring->kick, b.queues[i].kick_fd);
		CHECK_EQ(ring->call, b.guest.irq_fd);
		/* What was in the ring before nobody kicks for again. */
		CHECK_EQ(eventfd_read(b.queues[i].kick_fd, &value), 0);
	}
	unmake(&b);
}

static void test_the_rings_go_on_where_the_kernel_stands(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(pv_vhost_vsock_drain(b.vsock, PV_FOREVER), 0);
	CHECK_EQ(start(&b), 0);
	fakes[0].rings[RX].base = 9;
	fakes[0].rings[TX].base = 65535;
	CHECK_EQ(pv_vhost_vsock_drain(b.vsock, PV_FOREVER), 0);
	CHECK(!fakes[0].running);
	check_places(&b, 9, 65535);
	CHECK_EQ(start(&b), 0);
	CHECK_EQ(fakes[0].rings[RX].base, 9);
	CHECK_EQ(fakes[0].rings[TX].base, 65535);
	CHECK_EQ(pv_vhost_vsock_stop(b.vsock, PV_FOREVER), 0);
	check_places(&b, 9, 65535);
	unmake(&b);
}

static void test_a_ring_that_the_kernel_finds_broken(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(start(&b), 0);
	CHECK_EQ(eventfd_write(fakes[0].rings[TX].error, 1), 0);
	guest_check_broken(&b.guest, "vhost-vsock found a ring whose rules are broken");
	unmake(&b);
}

static void test_what_fails_leaves_nothing(void)
{
	struct bench b;
	struct files files;

	make(&b);
	for (unsigned i = 0; i < FAKE_STEPS; i++) {
		fake_fails = FAKE_SET_UP[i];
		fake_fails_after = 0;
		CHECK_EQ(start(&b), -EIO);
		CHECK_EQ(fake_fails, 0);
		CHECK(!fakes[0].running);
	}
	fake_fails = VHOST_VSOCK_SET_RUNNING;
	CHECK_EQ(start(&b), -EIO);
	fake_offers = 0;
	CHECK_EQ(start(&b), -EOPNOTSUPP);
	fake_offers = RING_FEATURES;
	files = files_end();
	CHECK_EQ(start(&b), -EMFILE);
	files_go_on(files);
	CHECK_EQ(start(&b), 0);
	CHECK(fakes[0].running);
	unmake(&b);
}

static void test_a_driver_without_queues_is_refused(void)
{
	struct bench b;
	struct queue rx;

	make(&b);
	rx = b.queues[RX];
	b.queues[RX].ring = NULL;
	CHECK_EQ(start(&b), -EINVAL);
	b.queues[RX] = rx;
	unmake(&b);
}

static void test_an_address_that_cannot_be_had(void)
{
	const unsigned long requests[] = {VHOST_SET_OWNER, VHOST_VSOCK_SET_GUEST_CID};
	struct pv_vhost_vsock *vsock;
	struct files files;
	int fd = fake_make();

	for (unsigned i = 0; i < 2; i++) {
		fake_fails = requests[i];
		fake_fails_after = 0;
		CHECK_EQ(pv_vhost_vsock_new(fd, CID, &vsock), -EIO);
		CHECK(!vsock);
	}
	files = files_end();
	CHECK_EQ(pv_vhost_vsock_new(fd, CID, &vsock), -EMFILE);
	files_go_on(files);
	CHECK(!vsock);
	pv_vhost_vsock_free(NULL);
	fake_unmake_all();
}

int main(void)
{
	RUN(test_the_kernel_is_told_of_all);
	RUN(test_the_rings_go_on_where_the_kernel_stands);
	RUN(test_a_ring_that_the_kernel_finds_broken);
	RUN(test_what_fails_leaves_nothing);
	RUN(test_a_driver_without_queues_is_refused);
	RUN(test_an_address_that_cannot_be_had);
	return 0;
}
