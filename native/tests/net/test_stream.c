/* A network device on a stream socket. */
#include <arpa/inet.h>

#include "tests/net/bench.h"

enum { ROOM = PV_NET_HEADER + PV_NET_FRAME_MAX };

static uint8_t frame[PV_NET_FRAME_MAX], packet[ROOM];
static const struct virtio_net_hdr_v1 PLAIN = {0};

static void stream_sends(struct bench *b, const uint8_t *data, uint32_t length)
{
	uint32_t prefix = htonl(length);

	write_all(b->host[0], &prefix, 4);
	write_all(b->host[0], data, length);
}

static void test_a_stream_carries_packets_both_ways(void)
{
	static const uint32_t LENGTHS[] = {14, 60, 1514, 9014, 65549};
	struct bench b;
	uint16_t taken = 0;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, BENCH_SIZE, 0x200000, 4096);
	for (unsigned i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
		uint32_t prefix, count = (PV_NET_HEADER + LENGTHS[i] + 4095) / 4096;

		make_frame(frame, LENGTHS[i], i);
		stream_sends(&b, frame, LENGTHS[i]);
		WAIT_FOR(used(&b.queues[RX]) == (uint16_t)(taken + count));
		CHECK_EQ(memcmp(data_at(&b, 0x20000c + taken * 4096u), frame,
		                LENGTHS[i]), 0);
		taken = (uint16_t)(taken + count);
		offer_packet(&b, 0, PLAIN, frame, LENGTHS[i]);
		read_all(b.host[0], &prefix, 4);
		CHECK_EQ(ntohl(prefix), LENGTHS[i]);
		read_all(b.host[0], packet, LENGTHS[i]);
		CHECK_EQ(memcmp(packet, frame, LENGTHS[i]), 0);
		WAIT_FOR(used(&b.queues[TX]) == i + 1);
	}
	bench_unmake(&b);
}

/* Byte by byte, and many in one piece. */
static void test_a_stream_may_come_in_pieces(void)
{
	enum { COUNT = 20, LENGTH = 60 };
	uint8_t bytes[COUNT * (4 + LENGTH)];
	struct bench b;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, 2 * COUNT, 0, 100);
	for (uint32_t i = 0; i < COUNT; i++) {
		bytes[i * (4 + LENGTH)] = bytes[i * (4 + LENGTH) + 1] = 0;
		bytes[i * (4 + LENGTH) + 2] = 0;
		bytes[i * (4 + LENGTH) + 3] = LENGTH;
		make_frame(bytes + i * (4 + LENGTH) + 4, LENGTH, i);
	}
	for (uint32_t i = 0; i < sizeof(bytes); i++)
		write_all(b.host[0], bytes + i, 1);
	write_all(b.host[0], bytes, sizeof(bytes));
	WAIT_FOR(used(&b.queues[RX]) == 2 * COUNT);
	for (uint32_t i = 0; i < 2 * COUNT; i++)
		CHECK_EQ(memcmp(data_at(&b, i * 100 + PV_NET_HEADER),
		                bytes + i % COUNT * (4 + LENGTH) + 4, LENGTH), 0);
	bench_unmake(&b);
}

/* Who has had a packet by itself finds the second one of the next piece. */
static void test_a_piece_of_two_after_one_alone(void)
{
	enum { LENGTH = 60 };
	uint8_t bytes[2][4 + LENGTH];
	struct bench b;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, 3, 0, 100);
	for (unsigned i = 0; i < 2; i++) {
		memcpy(bytes[i], (uint8_t[]){0, 0, 0, LENGTH}, 4);
		make_frame(bytes[i] + 4, LENGTH, i);
	}
	write_all(b.host[0], bytes, sizeof(bytes[0]));
	WAIT_FOR(used(&b.queues[RX]) == 1);
	write_all(b.host[0], bytes, sizeof(bytes));
	WAIT_FOR(used(&b.queues[RX]) == 3);
	bench_unmake(&b);
}

/* A socket takes a part of a packet and then no more: the rest follows, and nothing in between. */
static void test_a_full_stream_loses_nothing(void)
{
	enum { COUNT = 30, LENGTH = 60000 };
	struct bench b;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, 0, 1);
	make_frame(frame, LENGTH, 3);
	offer_packets(&b, COUNT, frame, LENGTH);
	WAIT_FOR(STAT(&b, tx_blocked) == 1);
	for (unsigned i = 0; i < COUNT; i++) {
		uint32_t prefix;

		read_all(b.host[0], &prefix, 4);
		CHECK_EQ(ntohl(prefix), LENGTH);
		read_all(b.host[0], packet, LENGTH);
		CHECK_EQ(memcmp(packet, frame, LENGTH), 0);
	}
	WAIT_FOR(used(&b.queues[TX]) == COUNT);
	bench_unmake(&b);
}

static void test_a_stream_with_a_length_that_cannot_be_is_given_up(void)
{
	uint32_t prefix = htonl(PV_NET_FRAME_MAX + 1);
	struct bench b;

	bench_make(&b, PV_NET_STREAM, (struct pv_net_config){0});
	bench_start(&b, MRG, 1);
	offer_buffers(&b, RX, 4, 0, 100);
	stream_sends(&b, frame, 13);
	WAIT_FOR(STAT(&b, rx_errors) == 1);
	write_all(b.host[0], &prefix, 4);
	check_loss(&b);
	bench_unmake(&b);
}

static void run_all(void)
{
	RUN(test_a_stream_carries_packets_both_ways);
	RUN(test_a_stream_may_come_in_pieces);
	RUN(test_a_piece_of_two_after_one_alone);
	RUN(test_a_full_stream_loses_nothing);
	RUN(test_a_stream_with_a_length_that_cannot_be_is_given_up);
}

int main(void)
{
	on_each_thread(run_all);
	return 0;
}
