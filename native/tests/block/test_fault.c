/* Faults of a disk: late, failed, lost and wrong answers, while others go their way. */
#include <pthread.h>

#include "tests/block/device.h"
#include "virtio/fault.h"

#define MS UINT64_C(1000000)

enum { ALL = PV_FAULT_READ | PV_FAULT_WRITE | PV_FAULT_FLUSH | PV_FAULT_DISCARD | PV_FAULT_ZEROES };

static int try_rule(struct device *d, struct pv_fault fault)
{
	int id;

	if (fault.every == 0)
		fault.every = 1;
	if (fault.last == 0)
		fault.last = UINT64_MAX;
	id = pv_faults_add(pv_virtio_irq_faults(d->guest.irq), &fault);
	kick(&d->queues[0]);
	return id;
}

static uint32_t add_rule(struct device *d, struct pv_fault fault)
{
	int id = try_rule(d, fault);

	CHECK(id > 0);
	return (uint32_t)id;
}

static void remove_rule(struct device *d, uint32_t id)
{
	CHECK_EQ(pv_faults_remove(pv_virtio_irq_faults(d->guest.irq), id), 0);
	kick(&d->queues[0]);
}

static struct pv_fault_state rule(struct device *d, uint32_t index)
{
	struct pv_fault_state state;

	CHECK_EQ(pv_faults_read(pv_virtio_irq_faults(d->guest.irq), index, &state), 0);
	return state;
}

static uint8_t read_sector(struct device *d, uint64_t sector)
{
	return ask(d, VIRTIO_BLK_T_IN, sector, data_at(d, 0), 512, NULL);
}

static void test_a_delayed_flush_waits_and_reads_do_not(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	uint64_t before;
	uint8_t *late;

	make_started(&d, 0);
	add_rule(&d, (struct pv_fault){
			     .kind = PV_FAULT_DELAY, .ops = PV_FAULT_FLUSH, .delay_ns = 300 * MS});
	before = now_ns();
	late = request(&d, q, 1, VIRTIO_BLK_T_FLUSH, 0, NULL, 0);
	kick(q);
	for (unsigned i = 0; i < 3; i++) {
		uint8_t *status = request(&d, q, 2 + i, VIRTIO_BLK_T_IN, i, data_at(&d, 0), 512);

		kick(q);
		WAIT_FOR(used(q) == i + 1);
		CHECK_EQ(*status, VIRTIO_BLK_S_OK);
	}
	WAIT_FOR(used(q) == 4);
	CHECK(now_ns() - before >= 300 * MS);
	CHECK_EQ(*late, VIRTIO_BLK_S_OK);
	CHECK_EQ(rule(&d, 0).seen, 1);
	CHECK_EQ(rule(&d, 0).hits, 1);
	unmake(&d);
}

static void test_the_shorter_delay_is_over_first(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	uint8_t *slow, *quick;

	make_started(&d, 0);
	add_rule(&d, (struct pv_fault){
			     .kind = PV_FAULT_DELAY, .ops = PV_FAULT_FLUSH, .delay_ns = 3600000 * MS});
	add_rule(&d, (struct pv_fault){
			     .kind = PV_FAULT_DELAY, .ops = PV_FAULT_READ, .delay_ns = 50 * MS});
	slow = request(&d, q, 1, VIRTIO_BLK_T_FLUSH, 0, NULL, 0);
	quick = request(&d, q, 2, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 512);
	kick(q);
	WAIT_FOR(used(q) == 1);
	CHECK_EQ(*quick, VIRTIO_BLK_S_OK);
	CHECK_EQ(*slow, UNANSWERED);
	unmake(&d);
}

static void test_fail_after_some_then_so_many(void)
{
	struct device d;
	uint32_t type;

	make_started(&d, 0);
	add_rule(&d, (struct pv_fault){.kind = PV_FAULT_FAIL, .ops = PV_FAULT_READ, .error = ENOSPC,
	                               .after = 3, .count = 2});
	for (unsigned i = 0; i < 8; i++)
		CHECK_EQ(read_sector(&d, 0), i == 3 || i == 4 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
	CHECK_EQ(rule(&d, 0).hits, 2);
	/* Spent, it looks at nothing. */
	CHECK_EQ(rule(&d, 0).seen, 5);
	CHECK_EQ(pv_block_take_error(d.block, &type), ENOSPC);
	CHECK_EQ(type, VIRTIO_BLK_T_IN);
	unmake(&d);
}

static void test_what_fails_is_not_done(void)
{
	struct device d;
	char *data;
	char byte = 'o';

	make_started(&d, 0);
	data = data_at(&d, 0);
	CHECK_EQ(pwrite(d.file, &byte, 1, 512), 1);
	add_rule(&d, (struct pv_fault){.kind = PV_FAULT_FAIL, .ops = PV_FAULT_WRITE, .error = EIO,
	                               .count = 1});
	memset(data, 'n', 512);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 1, data, 512, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(pread(d.file, &byte, 1, 512), 1);
	CHECK_EQ(byte, 'o');
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 1, data, 512, NULL), VIRTIO_BLK_S_OK);
	CHECK_EQ(pread(d.file, &byte, 1, 512), 1);
	CHECK_EQ(byte, 'n');
	unmake(&d);
}

static void test_what_is_not_supported(void)
{
	struct device d;
	uint32_t type;

	make_started(&d, 0);
	add_rule(&d, (struct pv_fault){.kind = PV_FAULT_FAIL,
	                               .ops = PV_FAULT_DISCARD | PV_FAULT_ZEROES,
	                               .error = EOPNOTSUPP});
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 0, 8, 0, 16), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0, 16), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(pv_block_take_error(d.block, &type), 0);
	check_lives(&d);
	unmake(&d);
}

static void test_every_third(void)
{
	struct device d;

	make_started(&d, 0);
	add_rule(&d, (struct pv_fault){.kind = PV_FAULT_FAIL, .ops = ALL, .error = EIO, .after = 1,
	                               .every = 3});
	for (unsigned i = 0; i < 10; i++)
		CHECK_EQ(read_sector(&d, 0), i == 3 || i == 6 || i == 9 ? VIRTIO_BLK_S_IOERR
		                                                        : VIRTIO_BLK_S_OK);
	unmake(&d);
}

static void test_a_range_of_sectors(void)
{
	struct device d;

	make_started(&d, 0);
	add_rule(&d, (struct pv_fault){
			     .kind = PV_FAULT_FAIL, .ops = ALL, .error = EIO, .first = 10, .last = 11});
	CHECK_EQ(read_sector(&d, 9), VIRTIO_BLK_S_OK);
	CHECK_EQ(read_sector(&d, 10), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(read_sector(&d, 11), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(read_sector(&d, 12), VIRTIO_BLK_S_OK);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 8, data_at(&d, 0), 1024, NULL), VIRTIO_BLK_S_OK);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 8, data_at(&d, 0), 1536, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL), VIRTIO_BLK_S_OK);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, UINT64_MAX, data_at(&d, 0), 512, NULL),
	         VIRTIO_BLK_S_IOERR);
	CHECK_EQ(rule(&d, 0).hits, 3);
	unmake(&d);
}

static void test_a_wrong_byte(void)
{
	struct device d;
	char *data, sent[1024];

	make_started(&d, 0);
	data = data_at(&d, 0);
	fill(sent, sizeof(sent), 3);
	CHECK_EQ(pwrite(d.file, sent, sizeof(sent), 0), sizeof(sent));
	add_rule(&d, (struct pv_fault){.kind = PV_FAULT_CORRUPT, .ops = PV_FAULT_READ, .offset = 600,
	                               .count = 1});
	/* Of too few bytes for it, and so not counted. */
	CHECK_EQ(read_sector(&d, 0), VIRTIO_BLK_S_OK);
	CHECK_EQ(memcmp(data, sent, 512), 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 0, data, 1024, NULL), VIRTIO_BLK_S_OK);
	sent[600] = (char)~sent[600];
	CHECK_EQ(memcmp(data, sent, 1024), 0);
	sent[600] = (char)~sent[600];
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 0, data, 1024, NULL), VIRTIO_BLK_S_OK);
	CHECK_EQ(memcmp(data, sent, 1024), 0);
	unmake(&d);
}

static void test_lost_until_the_rule_goes(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	uint8_t *first, *second;
	uint32_t other, id;

	make_started(&d, 0);
	other = add_rule(&d, (struct pv_fault){
				     .kind = PV_FAULT_DROP, .ops = PV_FAULT_FLUSH});
	id = add_rule(&d, (struct pv_fault){
				  .kind = PV_FAULT_DROP, .ops = PV_FAULT_READ, .count = 2});
	first = request(&d, q, 1, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 512);
	second = request(&d, q, 2, VIRTIO_BLK_T_IN, SECTORS, data_at(&d, 0), 512);
	request(&d, q, 3, VIRTIO_BLK_T_IN, 0, data_at(&d, 512), 512);
	kick(q);
	WAIT_FOR(used(q) == 1);
	/* Another rule's end changes nothing. */
	remove_rule(&d, other);
	usleep(20000);
	CHECK_EQ(used(q), 1);
	remove_rule(&d, id);
	WAIT_FOR(used(q) == 3);
	CHECK_EQ(*first, VIRTIO_BLK_S_OK);
	CHECK_EQ(*second, VIRTIO_BLK_S_IOERR); /* beyond the end */
	CHECK_EQ(pv_faults_remove(pv_virtio_irq_faults(d.guest.irq), id), -ENOENT);
	unmake(&d);
}

static void test_a_stop_waits_for_nothing(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	uint8_t *late[3], *lost;
	uint64_t before;

	make_started(&d, 0);
	add_rule(&d, (struct pv_fault){
			     .kind = PV_FAULT_DELAY, .ops = PV_FAULT_READ, .delay_ns = 60000 * MS});
	add_rule(&d, (struct pv_fault){.kind = PV_FAULT_DROP, .ops = PV_FAULT_WRITE});
	for (unsigned i = 0; i < 3; i++)
		late[i] = request(&d, q, i, VIRTIO_BLK_T_IN, i, data_at(&d, 0), 512);
	lost = request(&d, q, 3, VIRTIO_BLK_T_OUT, 0, data_at(&d, 512), 512);
	kick(q);
	WAIT_FOR(rule(&d, 0).hits == 3 && rule(&d, 1).hits == 1);
	before = now_ns();
	CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
	CHECK(now_ns() - before < 20000 * MS);
	CHECK_EQ(used(q), 4);
	for (unsigned i = 0; i < 3; i++)
		CHECK_EQ(*late[i], VIRTIO_BLK_S_OK);
	CHECK_EQ(*lost, VIRTIO_BLK_S_IOERR);
	/* The rules outlive the driver's reset. */
	CHECK_EQ(rule(&d, 1).hits, 1);
	unmake(&d);
}

static void test_rules_that_go_before_a_stop_lose_nothing(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	uint8_t *lost;

	make_started(&d, 0);
	add_rule(&d, (struct pv_fault){.kind = PV_FAULT_DROP, .ops = ALL});
	lost = request(&d, q, 0, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 512);
	kick(q);
	WAIT_FOR(rule(&d, 0).hits == 1);
	CHECK_EQ(pv_faults_remove(pv_virtio_irq_faults(d.guest.irq), 0), 0);
	CHECK_EQ(pv_block_stop(d.block, PV_FOREVER), 0);
	CHECK_EQ(*lost, VIRTIO_BLK_S_OK);
	unmake(&d);
}

static void test_late_and_then_failed(void)
{
	struct pv_block_config config = {.fd = -1, .iops = 1000};
	struct device d;
	uint64_t before;

	make(&d, &config);
	start(&d, FEATURES, 1);
	add_rule(&d, (struct pv_fault){
			     .kind = PV_FAULT_DELAY, .ops = ALL, .delay_ns = 50 * MS, .count = 1});
	add_rule(&d, (struct pv_fault){.kind = PV_FAULT_FAIL, .ops = ALL, .error = EIO, .count = 1});
	before = now_ns();
	CHECK_EQ(read_sector(&d, 0), VIRTIO_BLK_S_IOERR);
	CHECK(now_ns() - before >= 50 * MS);
	check_lives(&d);
	unmake(&d);
}

static void test_broken_from_outside(void)
{
	struct device d;
	struct queue *q = &d.queues[0];

	make_started(&d, 0);
	check_lives(&d);
	pv_virtio_irq_broken(d.guest.irq, "somebody asked for it");
	check_broken(&d, "somebody asked for it");
	request(&d, q, 1, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 512);
	kick(q);
	usleep(20000);
	CHECK_EQ(used(q), 1);
	stop(&d);
	pv_virtio_irq_reset(d.guest.irq);
	start(&d, FEATURES, 1);
	check_lives(&d);
	unmake(&d);
}

static void test_rules_that_cannot_be(void)
{
	static const struct pv_fault WRONG[] = {
		{.kind = 0, .ops = ALL},
		{.kind = 6, .ops = ALL},
		{.kind = PV_FAULT_DROP, .ops = 0},
		{.kind = PV_FAULT_DROP, .ops = 256},
		{.kind = PV_FAULT_FAIL, .ops = ALL, .error = 0},
		{.kind = PV_FAULT_FAIL, .ops = ALL, .error = -5},
		{.kind = PV_FAULT_DROP, .ops = ALL, .first = 2, .last = 1},
	};
	struct pv_fault never = {.kind = PV_FAULT_DROP, .ops = ALL};
	struct device d;

	make_started(&d, 0);
	for (unsigned i = 0; i < sizeof(WRONG) / sizeof(WRONG[0]); i++)
		CHECK_EQ(try_rule(&d, WRONG[i]), -EINVAL);
	CHECK_EQ(pv_faults_add(pv_virtio_irq_faults(d.guest.irq), &never), -EINVAL);
	for (unsigned i = 0; i < PV_FAULT_RULES; i++)
		CHECK_EQ(add_rule(&d, (struct pv_fault){.kind = PV_FAULT_FAIL, .ops = PV_FAULT_RX,
		                                        .error = EIO}), i + 1);
	CHECK_EQ(try_rule(&d, (struct pv_fault){.kind = PV_FAULT_DROP, .ops = ALL}), -ENOSPC);
	check_lives(&d);
	CHECK_EQ(pv_faults_remove(pv_virtio_irq_faults(d.guest.irq), 0), 0);
	CHECK_EQ(add_rule(&d, (struct pv_fault){.kind = PV_FAULT_FAIL, .ops = ALL, .error = EIO}),
	         PV_FAULT_RULES + 1);
	CHECK_EQ(read_sector(&d, 0), VIRTIO_BLK_S_IOERR);
	unmake(&d);
}

static struct device shared;
static bool is_done;

static void *come_and_go(void *unused)
{
	static const uint32_t KINDS[] = {PV_FAULT_DELAY, PV_FAULT_DROP, PV_FAULT_CORRUPT};

	for (unsigned i = 0; !__atomic_load_n(&is_done, __ATOMIC_ACQUIRE); i++) {
		uint32_t id = add_rule(&shared, (struct pv_fault){.kind = KINDS[i % 3],
		                                                  .ops = PV_FAULT_READ,
		                                                  .delay_ns = MS,
		                                                  .offset = 7});

		usleep(i % 7 * 100);
		remove_rule(&shared, id);
	}
	return unused;
}

/* With interrupts that are doubled and lost, and rules that come and go, every request is answered
 * once. */
static void test_under_load(void)
{
	struct queue *q = &shared.queues[0];
	pthread_t thread;

	is_done = false;
	make_started(&shared, 0);
	add_rule(&shared, (struct pv_fault){
				  .kind = PV_FAULT_DOUBLE, .ops = PV_FAULT_INTERRUPT, .every = 3});
	add_rule(&shared, (struct pv_fault){
				  .kind = PV_FAULT_DROP, .ops = PV_FAULT_INTERRUPT, .every = 2});
	CHECK_EQ(pthread_create(&thread, NULL, come_and_go, NULL), 0);
	for (unsigned round = 0; round < 200; round++) {
		uint8_t *status[20];

		for (unsigned i = 0; i < 20; i++)
			status[i] = request(&shared, q, i, VIRTIO_BLK_T_IN, i, data_at(&shared, 512 * i), 512);
		kick(q);
		WAIT_FOR(used(q) == q->offered);
		for (unsigned i = 0; i < 20; i++)
			CHECK_EQ(*status[i], VIRTIO_BLK_S_OK);
	}
	__atomic_store_n(&is_done, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	unmake(&shared);
}

static void run_all(void)
{
	RUN(test_a_delayed_flush_waits_and_reads_do_not);
	RUN(test_the_shorter_delay_is_over_first);
	RUN(test_fail_after_some_then_so_many);
	RUN(test_what_fails_is_not_done);
	RUN(test_what_is_not_supported);
	RUN(test_every_third);
	RUN(test_a_range_of_sectors);
	RUN(test_a_wrong_byte);
	RUN(test_lost_until_the_rule_goes);
	RUN(test_a_stop_waits_for_nothing);
	RUN(test_rules_that_go_before_a_stop_lose_nothing);
	RUN(test_late_and_then_failed);
	RUN(test_broken_from_outside);
	RUN(test_rules_that_cannot_be);
	RUN(test_under_load);
}

int main(void)
{
	on_each_engine(run_all);
	return 0;
}
