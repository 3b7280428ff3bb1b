/* The control queue, and what its commands do to the packets that are received. */
#include "tests/net/bench.h"

enum { ACK = 0x300000, COMMAND = 0x300010, UNANSWERED = 0xaa };

#define CTRL_ALL                                                                                   \
	(MRG | F(CTRL_VQ) | F(CTRL_RX) | F(CTRL_VLAN) | F(CTRL_MAC_ADDR) | F(GUEST_CSUM) |         \
	 F(GUEST_TSO4) | F(CTRL_GUEST_OFFLOADS) | F(MQ))

static uint8_t frame[64];

/* The answer to a command. */
static uint8_t command(struct bench *b, uint8_t class, uint8_t number, const void *data,
                       uint32_t length)
{
	struct queue *q = &b->queues[CTRL];
	struct part parts[] = {{COMMAND, 2, false}, {COMMAND + 2, length, false}, {ACK, 1, true}};
	uint8_t *at = (uint8_t *)data_at(b, COMMAND);

	at[0] = class;
	at[1] = number;
	if (length > 0)
		memcpy(at + 2, data, length);
	*data_at(b, ACK) = (char)UNANSWERED;
	offer(q, parts, 3);
	WAIT_FOR(used(q) == q->offered);
	CHECK_EQ(written(q, (unsigned)(q->offered - 1)), 1);
	return (uint8_t)*data_at(b, ACK);
}

static uint8_t set_switch(struct bench *b, uint8_t number, uint8_t on)
{
	return command(b, VIRTIO_NET_CTRL_RX, number, &on, 1);
}

/* A device with plenty of buffers that receives only what it has to. */
static void run_filtered(struct bench *b)
{
	bench_run(b, CTRL_ALL);
	offer_buffers(b, RX, BENCH_SIZE, 0, 100);
	CHECK_EQ(set_switch(b, VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
}

/* Whether a frame that begins so reaches the driver. */
static bool is_received(struct bench *b, const uint8_t *start, size_t length)
{
	struct pv_net_stats before = stats(b), now;

	memset(frame, 0, sizeof(frame));
	memcpy(frame, start, length);
	host_sends(b, frame, sizeof(frame), (struct virtio_net_hdr_v1){0});
	WAIT_FOR((now = stats(b), now.rx_packets + now.rx_filtered) ==
	         before.rx_packets + before.rx_filtered + 1);
	return now.rx_packets > before.rx_packets;
}

static const uint8_t OTHER[6] = {0x02, 0, 0, 0, 0, 0x99};
static const uint8_t THIRD[6] = {0x02, 0, 0, 0, 0, 0x98};
static const uint8_t GROUP[6] = {0x01, 0, 0x5e, 0, 0, 0x01};
static const uint8_t GROUP2[6] = {0x01, 0, 0x5e, 0, 0, 0x02};
static const uint8_t ALL[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

static void test_everything_is_received_at_first(void)
{
	struct bench b;
	uint8_t tagged[16] = {0x02, 0, 0, 0, 0, 0x99, 0, 0, 0, 0, 0, 0, 0x81, 0, 0, 5};

	bench_run(&b, CTRL_ALL);
	offer_buffers(&b, RX, 8, 0, 100);
	CHECK(is_received(&b, OTHER, 6));
	CHECK(is_received(&b, GROUP, 6));
	CHECK(is_received(&b, tagged, 16));
	bench_unmake(&b);
}

static void test_addresses_are_filtered(void)
{
	struct bench b;

	run_filtered(&b);
	CHECK(is_received(&b, BENCH_MAC, 6));
	CHECK(is_received(&b, ALL, 6));
	CHECK(!is_received(&b, OTHER, 6));
	CHECK(!is_received(&b, GROUP, 6));
	CHECK_EQ(set_switch(&b, VIRTIO_NET_CTRL_RX_ALLMULTI, 1), VIRTIO_NET_OK);
	CHECK(is_received(&b, GROUP, 6));
	CHECK(!is_received(&b, OTHER, 6));
	CHECK_EQ(set_switch(&b, VIRTIO_NET_CTRL_RX_ALLMULTI, 0), VIRTIO_NET_OK);
	CHECK(!is_received(&b, GROUP, 6));
	CHECK_EQ(set_switch(&b, VIRTIO_NET_CTRL_RX_PROMISC, 1), VIRTIO_NET_OK);
	CHECK(is_received(&b, OTHER, 6));
	bench_unmake(&b);
}

/* The bytes of a table of so many addresses that end with `number`, and counted from it. */
static uint32_t put_table(uint8_t *at, const uint8_t *first, uint32_t count)
{
	memcpy(at, &count, 4);
	for (uint32_t i = 0; i < count; i++) {
		memcpy(at + 4 + 6 * i, first, 6);
		at[4 + 6 * i + 5] = (uint8_t)(first[5] + i);
	}
	return 4 + 6 * count;
}

static uint8_t set_tables(struct bench *b, uint32_t unicast, uint32_t multicast)
{
	uint8_t data[2 * (4 + 6 * 200)];
	uint32_t length = put_table(data, OTHER, unicast);

	length += put_table(data + length, GROUP, multicast);
	return command(b, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, data, length);
}

static void test_a_table_adds_addresses(void)
{
	struct bench b;

	run_filtered(&b);
	CHECK_EQ(set_tables(&b, 1, 1), VIRTIO_NET_OK);
	CHECK(is_received(&b, OTHER, 6));
	CHECK(is_received(&b, GROUP, 6));
	CHECK(!is_received(&b, THIRD, 6));
	CHECK(!is_received(&b, GROUP2, 6));
	CHECK_EQ(set_tables(&b, 0, 2), VIRTIO_NET_OK);
	CHECK(!is_received(&b, OTHER, 6));
	CHECK(is_received(&b, GROUP2, 6));
	CHECK(is_received(&b, BENCH_MAC, 6));
	bench_unmake(&b);
}

static void test_a_table_too_long_lets_all_through(void)
{
	struct bench b;

	run_filtered(&b);
	CHECK_EQ(set_tables(&b, PV_NET_ADDRESSES, 0), VIRTIO_NET_OK);
	CHECK(!is_received(&b, THIRD, 6));
	CHECK_EQ(set_tables(&b, PV_NET_ADDRESSES + 1, 0), VIRTIO_NET_OK);
	CHECK(is_received(&b, THIRD, 6));
	CHECK(!is_received(&b, GROUP2, 6));
	CHECK_EQ(set_tables(&b, 0, 200), VIRTIO_NET_OK);
	CHECK(!is_received(&b, THIRD, 6));
	CHECK(is_received(&b, GROUP2, 6));
	bench_unmake(&b);
}

static void test_a_table_that_lies_about_its_length_changes_nothing(void)
{
	static const uint32_t COUNTS[] = {2, 0x2aaaaaab, 0xffffffff};
	uint8_t data[4 + 6 + 4];
	struct bench b;

	run_filtered(&b);
	CHECK_EQ(set_tables(&b, 1, 0), VIRTIO_NET_OK);
	for (unsigned i = 0; i < 3; i++) {
		put_table(data, THIRD, 1);
		memset(data + 10, 0, 4);
		memcpy(data, &COUNTS[i], 4);
		CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MAC, 0, data, 14), VIRTIO_NET_ERR);
		memcpy(data, &(uint32_t){1}, 4);
		memcpy(data + 10, &COUNTS[i], 4);
		CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MAC, 0, data, 14), VIRTIO_NET_ERR);
	}
	for (uint32_t length = 0; length < 14; length++)
		CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MAC, 0, data, length), VIRTIO_NET_ERR);
	CHECK(is_received(&b, OTHER, 6));
	CHECK(!is_received(&b, THIRD, 6));
	bench_unmake(&b);
}

static void test_a_command_ends_with_an_interrupt(void)
{
	struct bench b;

	bench_run(&b, F(CTRL_VQ) | F(CTRL_RX));
	CHECK(!readable(b.guest.irq_fd, 0));
	CHECK_EQ(set_switch(&b, VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
	CHECK(readable(b.guest.irq_fd, 10000));
	bench_unmake(&b);
}

static void test_the_driver_sets_its_address(void)
{
	struct bench b;
	uint8_t mac[6];

	run_filtered(&b);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, OTHER, 6),
	         VIRTIO_NET_OK);
	CHECK(is_received(&b, OTHER, 6));
	CHECK(!is_received(&b, BENCH_MAC, 6));
	CHECK_EQ(memcmp((char *)b.guest.page + 0x100, OTHER, 6), 0);
	pv_net_mac(b.net, mac);
	CHECK_EQ(memcmp(mac, OTHER, 6), 0);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, GROUP, 6),
	         VIRTIO_NET_ERR);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, THIRD, 5),
	         VIRTIO_NET_ERR);
	bench_stop(&b);
	pv_net_mac(b.net, mac);
	CHECK_EQ(memcmp(mac, BENCH_MAC, 6), 0);
	pv_net_set_mac(b.net, THIRD);
	pv_net_mac(b.net, mac);
	CHECK_EQ(memcmp(mac, THIRD, 6), 0);
	bench_unmake(&b);
}

static uint8_t set_vlan(struct bench *b, uint8_t number, uint16_t id)
{
	return command(b, VIRTIO_NET_CTRL_VLAN, number, &id, sizeof(id));
}

static bool is_vlan_received(struct bench *b, uint16_t id)
{
	uint8_t tagged[16] = {[12] = 0x81, 0, (uint8_t)(0xe0 | id >> 8), (uint8_t)id};

	memcpy(tagged, BENCH_MAC, 6);
	return is_received(b, tagged, sizeof(tagged));
}

static void test_vlans_are_filtered(void)
{
	struct bench b;

	run_filtered(&b);
	CHECK(is_vlan_received(&b, 0));
	CHECK(!is_vlan_received(&b, 5));
	CHECK_EQ(set_vlan(&b, VIRTIO_NET_CTRL_VLAN_ADD, 5), VIRTIO_NET_OK);
	CHECK_EQ(set_vlan(&b, VIRTIO_NET_CTRL_VLAN_ADD, 4095), VIRTIO_NET_OK);
	CHECK(is_vlan_received(&b, 5));
	CHECK(is_vlan_received(&b, 4095));
	CHECK(!is_vlan_received(&b, 69));
	CHECK_EQ(set_vlan(&b, VIRTIO_NET_CTRL_VLAN_DEL, 5), VIRTIO_NET_OK);
	CHECK(!is_vlan_received(&b, 5));
	CHECK_EQ(set_vlan(&b, VIRTIO_NET_CTRL_VLAN_ADD, 4096), VIRTIO_NET_ERR);
	CHECK_EQ(set_vlan(&b, 2, 5), VIRTIO_NET_ERR);
	bench_unmake(&b);
}

static uint8_t set_offloads(struct bench *b, uint64_t offloads)
{
	return command(b, VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
	               &offloads, sizeof(offloads));
}

static void test_the_driver_sets_its_offloads(void)
{
	struct virtio_net_hdr_v1 tso = {.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4};
	struct bench b;

	run_filtered(&b);
	make_frame(frame, sizeof(frame), 0);
	host_sends(&b, frame, 60, tso);
	WAIT_FOR(STAT(&b, rx_packets) == 1);
	CHECK_EQ(set_offloads(&b, F(GUEST_CSUM)), VIRTIO_NET_OK);
	host_sends(&b, frame, 60, tso);
	WAIT_FOR(STAT(&b, rx_unfit) == 1);
	CHECK_EQ(set_offloads(&b, F(GUEST_CSUM) | F(GUEST_TSO6)), VIRTIO_NET_ERR);
	CHECK_EQ(set_offloads(&b, F(CSUM)), VIRTIO_NET_ERR);
	CHECK_EQ(set_offloads(&b, F(GUEST_CSUM) | F(GUEST_TSO4)), VIRTIO_NET_OK);
	host_sends(&b, frame, 60, tso);
	WAIT_FOR(STAT(&b, rx_packets) == 2);
	bench_unmake(&b);
}

static void test_more_pairs_than_there_are_are_refused(void)
{
	static const uint16_t COUNTS[] = {0, 2, 0x8000, 0xffff};
	struct bench b;

	run_filtered(&b);
	for (unsigned i = 0; i < 4; i++)
		CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MQ, 0, &COUNTS[i], 2), VIRTIO_NET_ERR);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MQ, 0, &(uint16_t){1}, 2), VIRTIO_NET_OK);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_MQ, 1, &(uint16_t){1}, 2), VIRTIO_NET_ERR);
	bench_unmake(&b);
}

/* Every command there is, and some that there are not, with every length of data. */
static void test_commands_of_any_kind_are_answered(void)
{
	uint8_t data[32] = {0};
	struct bench b;

	bench_run(&b, CTRL_ALL);
	for (unsigned class = 0; class < 8; class++)
		for (unsigned number = 0; number < 8; number++)
			for (uint32_t length = 0; length < 20; length++) {
				uint8_t answer = command(&b, (uint8_t)class, (uint8_t)number, data, length);

				CHECK(answer == VIRTIO_NET_OK || answer == VIRTIO_NET_ERR);
				CHECK(answer == VIRTIO_NET_ERR || length > 0);
			}
	check_lives(&b);
	bench_unmake(&b);
}

static void test_what_was_not_negotiated_is_refused(void)
{
	static const struct {
		uint8_t class, number;
		uint8_t data[8];
		uint32_t length;
		uint64_t feature;
	} COMMANDS[] = {
		{VIRTIO_NET_CTRL_RX, 0, {1}, 1, F(CTRL_RX)},
		{VIRTIO_NET_CTRL_RX, 1, {1}, 1, F(CTRL_RX)},
		{VIRTIO_NET_CTRL_MAC, 0, {0}, 8, F(CTRL_RX)},
		{VIRTIO_NET_CTRL_MAC, 1, {2}, 6, F(CTRL_MAC_ADDR)},
		{VIRTIO_NET_CTRL_VLAN, 0, {1}, 2, F(CTRL_VLAN)},
		{VIRTIO_NET_CTRL_VLAN, 1, {1}, 2, F(CTRL_VLAN)},
		{VIRTIO_NET_CTRL_MQ, 0, {1}, 2, F(MQ)},
		{VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, {0}, 8, F(CTRL_GUEST_OFFLOADS)},
	};
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	for (unsigned i = 0; i < sizeof(COMMANDS) / sizeof(COMMANDS[0]); i++) {
		for (unsigned negotiated = 0; negotiated < 2; negotiated++) {
			uint64_t without = negotiated ? 0 : COMMANDS[i].feature;

			bench_start(&b, CTRL_ALL & ~without, 1);
			CHECK_EQ(command(&b, COMMANDS[i].class, COMMANDS[i].number,
			                 COMMANDS[i].data, COMMANDS[i].length),
			         negotiated ? VIRTIO_NET_OK : VIRTIO_NET_ERR);
			bench_stop(&b);
		}
	}
	bench_unmake(&b);
}

static void test_a_command_without_an_answer_breaks_the_device(void)
{
	struct bench b;

	bench_run(&b, CTRL_ALL);
	offer(&b.queues[CTRL], &(struct part){COMMAND, 3, false}, 1);
	check_broken(&b, "a command that cannot be answered");
	bench_unmake(&b);
}

static void test_a_command_without_a_header_breaks_the_device(void)
{
	struct part parts[] = {{COMMAND, 1, false}, {ACK, 1, true}};
	struct bench b;

	bench_run(&b, CTRL_ALL);
	offer(&b.queues[CTRL], parts, 2);
	check_broken(&b, "a command that cannot be answered");
	bench_unmake(&b);
}

static uint8_t status(struct bench *b)
{
	return __atomic_load_n((uint8_t *)b->guest.page + 0x100 + 6, __ATOMIC_ACQUIRE);
}

static void show_status(struct bench *b, uint8_t value)
{
	pv_virtio_irq_set_config(b->guest.irq, 6, &value, 1);
}

static void test_an_announcement_is_asked_for_until_it_is_acknowledged(void)
{
	const uint8_t both = VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE;
	struct bench b;

	bench_run(&b, CTRL_ALL | F(GUEST_ANNOUNCE));
	CHECK_EQ(pv_net_is_announcing(b.net), 0);
	pv_net_announce(b.net);
	WAIT_FOR(pv_net_take_announcement(b.net));
	WAIT_FOR(atomic_load(&b.net->announcements) == 0); /* it is the last one */
	CHECK_EQ(pv_net_is_announcing(b.net), 1);
	show_status(&b, both);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_ANNOUNCE, 1, NULL, 0), VIRTIO_NET_ERR);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_ANNOUNCE, 0, "x", 1), VIRTIO_NET_ERR);
	CHECK_EQ(pv_net_is_announcing(b.net), 1);
	CHECK_EQ(status(&b), both);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0),
	         VIRTIO_NET_OK);
	CHECK_EQ(pv_net_is_announcing(b.net), 0);
	CHECK_EQ(status(&b), VIRTIO_NET_S_LINK_UP);
	pv_net_announce(b.net);
	bench_stop(&b);
	CHECK_EQ(atomic_load(&b.net->announcements), 0);
	bench_start(&b, CTRL_ALL, 1);
	pv_net_announce(b.net);
	CHECK_EQ(atomic_load(&b.net->announcements), 0);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0),
	         VIRTIO_NET_ERR);
	bench_unmake(&b);
}

static void test_who_cannot_be_asked_loses_its_link_for_a_moment(void)
{
	struct bench b;

	bench_run(&b, CTRL_ALL | F(STATUS));
	pv_net_arrive(b.net);
	CHECK_EQ(pv_net_is_announcing(b.net), 0);
	WAIT_FOR(pv_net_take_announcement(b.net));
	CHECK_EQ(pv_net_is_flapping(b.net), 0);
	CHECK_EQ(pv_net_is_announcing(b.net), 0);
	bench_stop(&b);
	/* Without a control queue, too; it ends with the driver. */
	bench_start(&b, F(STATUS), 1);
	pv_net_arrive(b.net);
	bench_stop(&b);
	CHECK_EQ(pv_net_is_flapping(b.net), 0);
	bench_start(&b, F(STATUS), 1);
	pv_net_arrive(b.net);
	WAIT_FOR(pv_net_take_announcement(b.net));
	bench_stop(&b);
	/* One that sees no link at all, and one that is asked. */
	bench_start(&b, 0, 1);
	pv_net_arrive(b.net);
	CHECK_EQ(pv_net_is_flapping(b.net), 0);
	bench_stop(&b);
	bench_start(&b, CTRL_ALL | F(STATUS) | F(GUEST_ANNOUNCE), 1);
	pv_net_arrive(b.net);
	CHECK_EQ(pv_net_is_flapping(b.net), 0);
	WAIT_FOR(pv_net_is_announcing(b.net));
	bench_unmake(&b);
}

/* The test stands for the process that has the rings: nobody else touches them meanwhile. */
static void test_pairs_that_are_lent_have_their_commands_served(void)
{
	const struct pv_net_backend lent = {.kind = PV_NET_LENT, .count = 1};
	const uint64_t offloads = F(GUEST_CSUM);
	struct bench b;

	bench_run(&b, CTRL_ALL);
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
	CHECK_EQ(pv_net_attach(b.net, &lent, PV_FOREVER), 0);
	CHECK_EQ(pv_net_attach(b.net, &lent, PV_FOREVER), -EBUSY);
	CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), -EBUSY);
	offer_packets(&b, 2, frame, sizeof(frame));
	CHECK_EQ(set_switch(&b, VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &offloads, sizeof(offloads)),
	         VIRTIO_NET_ERR);
	CHECK_EQ(used(&b.queues[TX]), 0);
	CHECK_EQ(pv_virtqueue_waiting(b.queues[TX].ring), 2);
	/* It has sent one. */
	b.queues[TX].used->ring[0].id = b.queues[TX].avail->ring[0];
	__atomic_store_n(&b.queues[TX].used->idx, 1, __ATOMIC_RELEASE);
	CHECK_EQ(pv_virtqueue_waiting(b.queues[TX].ring), 1);
	pv_virtqueue_seek(b.queues[TX].ring, 1);
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
	WAIT_FOR(used(&b.queues[TX]) == 2);
	CHECK_EQ(STAT(&b, tx_no_link), 1);
	CHECK_EQ(command(&b, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &offloads, sizeof(offloads)),
	         VIRTIO_NET_OK);
	CHECK_EQ(bench_attach(&b, PV_NET_TAP, 1), 0);
	check_lives(&b);
	bench_unmake(&b);
}

static void test_of_several_pairs_none_is_lent(void)
{
	const struct pv_net_backend lent = {.kind = PV_NET_LENT, .count = 1};
	struct bench b;

	bench_make(&b, PV_NET_TAP, (struct pv_net_config){0});
	CHECK_EQ(pv_net_detach(b.net, PV_FOREVER), 0);
	bench_start(&b, CTRL_ALL, 2);
	CHECK_EQ(pv_net_attach(b.net, &lent, PV_FOREVER), -EINVAL);
	bench_unmake(&b);
}

static void run_all(void)
{
	RUN(test_everything_is_received_at_first);
	RUN(test_addresses_are_filtered);
	RUN(test_a_table_adds_addresses);
	RUN(test_a_table_too_long_lets_all_through);
	RUN(test_a_table_that_lies_about_its_length_changes_nothing);
	RUN(test_a_command_ends_with_an_interrupt);
	RUN(test_the_driver_sets_its_address);
	RUN(test_vlans_are_filtered);
	RUN(test_the_driver_sets_its_offloads);
	RUN(test_more_pairs_than_there_are_are_refused);
	RUN(test_commands_of_any_kind_are_answered);
	RUN(test_what_was_not_negotiated_is_refused);
	RUN(test_a_command_without_an_answer_breaks_the_device);
	RUN(test_a_command_without_a_header_breaks_the_device);
	RUN(test_an_announcement_is_asked_for_until_it_is_acknowledged);
	RUN(test_who_cannot_be_asked_loses_its_link_for_a_moment);
	RUN(test_pairs_that_are_lent_have_their_commands_served);
	RUN(test_of_several_pairs_none_is_lent);
}

int main(void)
{
	on_each_thread(run_all);
	return 0;
}
