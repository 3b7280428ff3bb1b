/* The limits of a network device. */
#include "tests/net/bench.h"

enum { ROOM = PV_NET_HEADER + PV_NET_FRAME_MAX };

static uint8_t frame[PV_NET_FRAME_MAX], packet[ROOM];
static const struct virtio_net_hdr_v1 PLAIN = {0};

/* So many bytes a second over ten seconds, in packets that go with the rate. */
static void test_the_rate_of_what_is_charged(void)
{
	static const uint64_t RATES[] = {1000, 125000, 12500000, UINT64_C(1250000000)};
	struct pv_throttle throttle;

	for (unsigned i = 0; i < sizeof(RATES) / sizeof(RATES[0]); i++) {
		uint64_t now = 5000, end = now + UINT64_C(10000000000), taken = 0;
		uint64_t bytes = RATES[i] < 100000000 ? 1500 : PV_NET_FRAME_MAX;

		pv_throttle_init(&throttle, RATES[i]);
		while (now < end) {
			uint64_t wait = pv_throttle_delay(&throttle, now);

			now += wait;
			if (wait == 0) {
				pv_throttle_charge(&throttle, now, bytes);
				taken += bytes;
			}
		}
		CHECK(taken >= 10 * RATES[i]);
		CHECK(taken <= 10 * RATES[i] + RATES[i] / 10 + 2 * bytes + RATES[i] / 500);
	}
	pv_throttle_init(&throttle, 0);
	pv_throttle_charge(&throttle, 1, UINT32_MAX);
	CHECK_EQ(pv_throttle_delay(&throttle, 1), 0);
}

/* `count` packets of `length` bytes in each direction; how long that took, in milliseconds. */
static uint64_t take_time(struct pv_net_config config, unsigned count, uint32_t length)
{
	struct bench b;
	uint64_t start, end;

	bench_make(&b, PV_NET_TAP, config);
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, BENCH_SIZE, 0x200000, 1526);
	make_frame(frame, length, 1);
	start = now_ns();
	offer_packets(&b, count, frame, length);
	for (unsigned i = 0; i < count; i++)
		host_sends(&b, frame, length, PLAIN);
	for (unsigned i = 0; i < count; i++)
		CHECK_EQ(host_gets(&b, packet, ROOM), PV_NET_HEADER + length);
	WAIT_FOR(used(&b.queues[RX]) == count && used(&b.queues[TX]) == count);
	end = now_ns();
	CHECK_EQ(STAT(&b, rx_throttled) > 0, config.rx_bytes + config.rx_packets > 0);
	CHECK_EQ(STAT(&b, tx_throttled) > 0, config.tx_bytes + config.tx_packets > 0);
	bench_unmake(&b);
	return (end - start) / 1000000;
}

/* A bucket holds a tenth of a second's worth, and may be overdrawn by a packet. */
static void test_limits_hold(void)
{
	CHECK(take_time((struct pv_net_config){.tx_packets = 100}, 40, 60) >= 280);
	CHECK(take_time((struct pv_net_config){.rx_packets = 100}, 40, 60) >= 280);
	CHECK(take_time((struct pv_net_config){.tx_bytes = 100000}, 40, 1000) >= 280);
	CHECK(take_time((struct pv_net_config){.rx_bytes = 100000}, 40, 1000) >= 280);
	take_time((struct pv_net_config){0}, 40, 1000);
}

static void test_a_limit_does_not_keep_it_from_stopping(void)
{
	struct bench b;
	uint64_t start;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){.tx_bytes = 1, .rx_bytes = 1});
	bench_start(&b, 0, 1);
	make_frame(frame, 60000, 1);
	offer_packets(&b, 3, frame, 60000);
	WAIT_FOR(STAT(&b, tx_throttled) == 1);
	start = now_ns();
	bench_stop(&b);
	CHECK(now_ns() - start < UINT64_C(9000000000));
	bench_unmake(&b);
}

static void run_all(void)
{
	RUN(test_the_rate_of_what_is_charged);
	RUN(test_limits_hold);
	RUN(test_a_limit_does_not_keep_it_from_stopping);
}

int main(void)
{
	on_each_thread(run_all);
	return 0;
}
