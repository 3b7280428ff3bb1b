/* A host that for a while has no room for io_uring's work, or none for another ring. */
#include <liburing.h>

#include "tests/block/device.h"
#include "tests/block/library.h"

enum { ROUNDS = 40, IN_A_QUEUE = SIZE / 3 };

static atomic_int to_refuse; /* calls that are still to come */
static atomic_int refusal; /* what they get */

static bool is_refused(void)
{
	int left = atomic_load(&to_refuse);

	while (left > 0 && !atomic_compare_exchange_weak(&to_refuse, &left, left - 1))
		;
	return left > 0;
}

int io_uring_submit(struct io_uring *ring)
{
	typedef int call(struct io_uring *);

	return is_refused() ? refusal : CALL("io_uring_submit", call *, ring);
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned count)
{
	typedef int call(struct io_uring *, unsigned);

	return is_refused() ? refusal : CALL("io_uring_submit_and_wait", call *, ring, count);
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
	typedef int call(struct io_uring *);

	return is_refused() ? refusal : CALL("io_uring_submit_and_get_events", call *, ring);
}

int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
	typedef int call(unsigned, struct io_uring *, struct io_uring_params *);

	return is_refused() ? refusal : CALL("io_uring_queue_init_params", call *, entries, ring, p);
}

/* As many writes as there is room for, in each of the queues. */
static void write_all_at_once(struct device *d, uint8_t *status[QUEUES][IN_A_QUEUE], int round)
{
	for (unsigned q = 0; q < QUEUES; q++) {
		for (unsigned i = 0; i < IN_A_QUEUE; i++) {
			unsigned slot = q * IN_A_QUEUE + i;
			char *data = data_at(d, slot * 512);

			memset(data, round + (int)slot, 512);
			status[q][i] =
				request(d, &d->queues[q], slot, VIRTIO_BLK_T_OUT, slot, data, 512);
		}
	}
	for (unsigned q = 0; q < QUEUES; q++)
		kick(&d->queues[q]);
}

static void test_work_that_is_not_taken_at_once(void)
{
	static const int ERRORS[] = {-EAGAIN, -EBUSY, -ENOMEM, -EINTR};
	struct pv_block_config config = {.fd = -1};
	uint8_t *status[QUEUES][IN_A_QUEUE];
	struct device d;
	char there[512];

	make(&d, &config);
	start(&d, FEATURES, QUEUES);
	for (int round = 0; round < ROUNDS; round++) {
		atomic_store(&refusal, ERRORS[round % 4]);
		atomic_store(&to_refuse, 1 + round % 9);
		write_all_at_once(&d, status, round);
		for (unsigned q = 0; q < QUEUES; q++)
			WAIT_FOR(used(&d.queues[q]) == d.queues[q].offered);
		CHECK_EQ(atomic_load(&to_refuse), 0);
		for (unsigned slot = 0; slot < QUEUES * IN_A_QUEUE; slot++) {
			CHECK_EQ(*status[slot / IN_A_QUEUE][slot % IN_A_QUEUE], VIRTIO_BLK_S_OK);
			CHECK_EQ(pread(d.file, there, 512, slot * 512), 512);
			check_bytes(there, 512, (char)(round + (int)slot));
		}
	}
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL), VIRTIO_BLK_S_OK);
	unmake(&d);
}

static void test_no_room_for_a_ring(void)
{
	static const int ERRORS[] = {-EAGAIN, -ENOMEM, -EMFILE, -EPERM};
	struct pv_block_config config = {.fd = -1};
	struct pv_queue queue;
	struct device d;

	make(&d, &config);
	for (unsigned i = 0; i < 4; i++) {
		make_queue(&d, 0);
		queue = served(&d.queues[0]);
		atomic_store(&refusal, ERRORS[i]);
		atomic_store(&to_refuse, 1);
		CHECK_EQ(pv_block_start(d.block, FEATURES, &queue, 1, d.guest.irq), ERRORS[i]);
		CHECK_EQ(pv_block_start(d.block, FEATURES, &queue, 1, d.guest.irq), 0);
		check_lives(&d);
		stop(&d);
	}
	start(&d, FEATURES, 1);
	unmake(&d);
}

int main(void)
{
	RUN(test_work_that_is_not_taken_at_once);
	RUN(test_no_room_for_a_ring);
	return 0;
}
