/* The limit on requests a second. */
#include "tests/block/device.h"
#include "throttle_internal.h"

static void test_the_rate_of_a_throttle(void)
{
	static const uint32_t RATES[] = {1, 7, 100, 999, 30000, 1000000};
	struct pv_throttle throttle;

	for (unsigned i = 0; i < sizeof(RATES) / sizeof(RATES[0]); i++) {
		uint64_t now = 5000, end = now + UINT64_C(10000000000);
		uint32_t taken = 0, most = RATES[i] / 10 > 1 ? RATES[i] / 10 : 1;

		pv_throttle_init(&throttle, RATES[i]);
		while (now < end) {
			uint64_t wait = pv_throttle_take(&throttle, now);

			taken += wait == 0;
			now += wait;
		}
		/* Ten seconds' worth to one part in a thousand, and what the bucket held. */
		CHECK(taken >= 10 * RATES[i]);
		CHECK(taken <= 10 * RATES[i] + RATES[i] / 100 + most + 1);
	}
	pv_throttle_init(&throttle, 0);
	for (unsigned i = 0; i < 1000; i++)
		CHECK_EQ(pv_throttle_take(&throttle, 1), 0);
}

static void test_throttled_requests_wait_and_a_stop_does_not(void)
{
	struct pv_block_config config = {.fd = -1, .iops = 20};
	struct pv_block_stats stats;
	struct device d;
	struct queue *q = &d.queues[0];
	uint64_t before;

	make(&d, &config);
	start(&d, FEATURES, 1);
	before = now_ns();
	for (unsigned i = 0; i < 6; i++)
		check_lives(&d);
	/* The bucket holds two: four had to wait for 50 ms each. */
	CHECK(now_ns() - before >= 190 * 1000000);
	for (unsigned i = 0; i < 20; i++)
		request(&d, q, i, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 512);
	kick(q);
	usleep(1000);
	before = now_ns();
	CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
	CHECK(now_ns() - before < UINT64_C(800) * 1000000);
	CHECK_EQ(pv_virtqueue_in_flight(q->ring), 0);
	pv_block_stats(d.block, &stats);
	CHECK(stats.throttled >= 4);
	unmake(&d);
}

static void run_all(void)
{
	RUN(test_throttled_requests_wait_and_a_stop_does_not);
}

int main(void)
{
	RUN(test_the_rate_of_a_throttle);
	on_each_engine(run_all);
	return 0;
}
