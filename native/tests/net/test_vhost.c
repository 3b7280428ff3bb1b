/* A NIC whose rings the kernel serves: what it is told, where it begins and ends, and that nothing is
 * left of what fails half-way. */
#include "tests/files.h"
#include "tests/net/bench.h"
#include "tests/virtio/fake_vhost.h"

#define FEATURES (MRG | F(CTRL_VQ) | F(MQ) | UINT64_C(1) << 28 | UINT64_C(1) << 29)
#define OF_VHOST (MRG | UINT64_C(1) << 28 | UINT64_C(1) << 29 | UINT64_C(1) << 32)

enum { PAIRS = 2 };

static int vhost_fds[PAIRS];

static int attach(struct bench *b, uint32_t pairs)
{
	struct pv_net_backend backend = {
		.kind = PV_NET_TAP, .count = pairs, .fds = b->own, .vhost_fds = vhost_fds};

	return pv_net_attach(b->net, &backend, PV_FOREVER);
}

static void make(struct bench *b)
{
	bench_make(b, PV_NET_TAP, (struct pv_net_config){0});
	CHECK_EQ(pv_net_detach(b->net, PV_FOREVER), 0);
	fake_offers = OF_VHOST;
	for (unsigned i = 0; i < PAIRS; i++)
		vhost_fds[i] = fake_make();
	CHECK_EQ(attach(b, PAIRS), 0);
	CHECK(fakes[0].owned && fakes[1].owned);
}

static void unmake(struct bench *b)
{
	bench_unmake(b);
	CHECK(!fakes[0].owned && !fakes[1].owned);
	fake_unmake_all();
}

/* Whether the kernel has the rings of the first `pairs`, and no others. */
static void check_lent(const struct bench *b, unsigned pairs)
{
	for (unsigned i = 0; i < 2 * PAIRS; i++) {
		int expected = i / 2 < pairs ? b->own[i / 2] : FAKE_NONE;

		CHECK_EQ(fakes[i / 2].rings[i % 2].backend, expected);
	}
}

static uint16_t next_of(const struct queue *q)
{
	uint16_t avail, used_next;

	pv_virtqueue_save(q->ring, &avail, &used_next);
	CHECK_EQ(avail, used_next);
	return avail;
}

static void check_told(struct bench *b, unsigned pair, unsigned direction)
{
	const struct fake_ring *ring = &fakes[pair].rings[direction];
	struct queue *q = &b->queues[2 * pair + direction];
	eventfd_t value;

	CHECK_EQ(ring->size, QUEUE_SIZE);
	CHECK_EQ(ring->base, 0);
	CHECK_EQ(ring->address.desc_user_addr, (uintptr_t)q->desc);
	CHECK_EQ(ring->address.avail_user_addr, (uintptr_t)q->avail);
	CHECK_EQ(ring->address.used_user_addr, (uintptr_t)q->used);
	CHECK_EQ(ring->kick, q->kick_fd);
	CHECK_EQ(ring->call, b->guest.irq_fd);
	CHECK(ring->error >= 0);
	/* What was in the ring before nobody kicks for again. */
	CHECK_EQ(eventfd_read(q->kick_fd, &value), 0);
}

static void test_the_kernel_is_told_of_all(void)
{
	struct bench b;

	make(&b);
	bench_start(&b, FEATURES, PAIRS);
	check_lent(&b, PAIRS);
	for (unsigned i = 0; i < PAIRS; i++) {
		CHECK_EQ(fakes[i].features, OF_VHOST);
		CHECK_EQ(fakes[i].region_count, 1);
		CHECK_EQ(fakes[i].regions[0].guest_phys_addr, 0);
		CHECK_EQ(fakes[i].regions[0].memory_size, BENCH_RAM);
		CHECK_EQ(fakes[i].regions[0].userspace_addr, (uintptr_t)b.guest.ram);
		check_told(&b, i, RX);
		check_told(&b, i, TX);
	}
	bench_stop(&b);
	check_lent(&b, 0);
	bench_start(&b, FEATURES, 1);
	check_lent(&b, 1);
	unmake(&b);
}

static void test_the_rings_go_on_where_the_kernel_stands(void)
{
	struct bench b;

	make(&b);
	bench_start(&b, FEATURES, PAIRS);
	fakes[0].rings[RX].base = 5;
	fakes[1].rings[TX].base = 65535;
	CHECK_EQ(pv_net_drain(b.net, PV_FOREVER), 0);
	check_lent(&b, 0);
	CHECK_EQ(next_of(&b.queues[RX]), 5);
	CHECK_EQ(next_of(&b.queues[TX]), 0);
	CHECK_EQ(next_of(&b.queues[2 + TX]), 65535);
	CHECK_EQ(pv_net_resume(b.net), 0);
	check_lent(&b, PAIRS);
	CHECK_EQ(fakes[0].rings[RX].base, 5);
	CHECK_EQ(fakes[1].rings[TX].base, 65535);
	unmake(&b);
}

static void test_without_a_link_the_kernel_has_nothing(void)
{
	struct bench b;

	make(&b);
	bench_start(&b, FEATURES, PAIRS);
	CHECK_EQ(pv_net_set_link(b.net, 0, PV_FOREVER), 0);
	check_lent(&b, 0);
	CHECK_EQ(pv_net_set_link(b.net, 1, PV_FOREVER), 0);
	check_lent(&b, PAIRS);
	unmake(&b);
}

static void test_a_ring_that_the_kernel_finds_broken(void)
{
	struct bench b;

	make(&b);
	bench_start(&b, FEATURES, PAIRS);
	CHECK_EQ(eventfd_write(fakes[1].rings[TX].error, 1), 0);
	check_broken(&b, "vhost-net found a ring whose rules are broken");
	bench_stop(&b);
	check_lent(&b, 0);
	bench_start(&b, FEATURES, PAIRS);
	check_lent(&b, PAIRS);
	unmake(&b);
}

/* That a driver's start fails by this error, and the next one does not. */
static void check_start_fails(struct bench *b, int error)
{
	struct pv_net_pair pairs[PAIRS];
	struct pv_net_activation activation = {
		.features = FEATURES | UINT64_C(1) << 32,
		.pairs = pairs,
		.count = PAIRS,
		.irq = b->guest.irq,
		.memory = b->guest.memory,
	};

	for (unsigned i = 0; i < BENCH_QUEUES; i++)
		queue_make(&b->guest, &b->queues[i], i, true, true);
	for (unsigned i = 0; i < PAIRS; i++)
		pairs[i] = (struct pv_net_pair){served(&b->queues[2 * i]),
		                                served(&b->queues[2 * i + 1])};
	CHECK_EQ(pv_net_start(b->net, &activation), error);
	CHECK_EQ(fake_fails, 0);
	check_lent(b, 0);
	for (unsigned i = 0; i < BENCH_QUEUES; i++)
		queue_unmake(&b->queues[i]);
}

static void test_what_fails_leaves_nothing(void)
{
	struct bench b;

	make(&b);
	/* Of the first device and of the second. */
	for (unsigned i = 0; i < FAKE_STEPS; i++)
		for (unsigned after = 0; after < 2; after++) {
			fake_fails = FAKE_SET_UP[i];
			fake_fails_after = after;
			check_start_fails(&b, -EIO);
		}
	for (unsigned after = 0; after < 4; after++) {
		fake_fails = VHOST_NET_SET_BACKEND;
		fake_fails_after = after;
		check_start_fails(&b, -EIO);
	}
	fake_offers = OF_VHOST & ~MRG;
	check_start_fails(&b, -EOPNOTSUPP);
	fake_offers = OF_VHOST;
	bench_start(&b, FEATURES, PAIRS);
	check_lent(&b, PAIRS);
	unmake(&b);
}

static void test_a_backend_that_fails_is_none(void)
{
	struct bench b;

	make(&b);
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
	fake_fails = VHOST_SET_OWNER;
	fake_fails_after = 1;
	CHECK_EQ(attach(&b, PAIRS), -EIO);
	CHECK(!fakes[0].owned && !fakes[1].owned);
	bench_start(&b, FEATURES, PAIRS);
	CHECK_EQ(attach(&b, 1), -EINVAL); /* fewer than the driver has */
	fake_fails = VHOST_SET_VRING_ADDR;
	fake_fails_after = 2;
	CHECK_EQ(attach(&b, PAIRS), -EIO);
	CHECK(!fakes[0].owned && !fakes[1].owned);
	check_lent(&b, 0);
	CHECK_EQ(attach(&b, PAIRS), 0);
	check_lent(&b, PAIRS);
	CHECK_EQ(attach(&b, PAIRS), -EBUSY);
	unmake(&b);
}

static void test_a_host_without_descriptors(void)
{
	struct bench b;
	struct files files;

	make(&b);
	bench_start(&b, FEATURES, PAIRS);
	CHECK_EQ(pv_net_drain(b.net, PV_FOREVER), 0);
	files = files_end();
	CHECK_EQ(pv_net_resume(b.net), -EMFILE);
	files_go_on(files);
	check_broken(&b, "its threads cannot be started again");
	check_lent(&b, 0);
	unmake(&b);
}

int main(void)
{
	RUN(test_the_kernel_is_told_of_all);
	RUN(test_the_rings_go_on_where_the_kernel_stands);
	RUN(test_without_a_link_the_kernel_has_nothing);
	RUN(test_a_ring_that_the_kernel_finds_broken);
	RUN(test_what_fails_leaves_nothing);
	RUN(test_a_backend_that_fails_is_none);
	RUN(test_a_host_without_descriptors);
	return 0;
}
