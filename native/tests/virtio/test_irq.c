/* Interrupts of one virtio device, raised by many threads at once while the driver acknowledges. */
#include "virtio/irq.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>

#include "tests/check.h"
#include "tests/virtio/reason.h"
#include "virtio/fault.h"

enum { THREADS = 4, ROUNDS = 2000, INTERRUPT_STATUS = 0x60, STATUS = 0x70, NEEDS_RESET = 64 };

static _Alignas(4096) unsigned char page[4096];

struct bench {
	struct pv_virtio_irq *irq;
	int irq_fd;
	int broken_fd;
};

static uint32_t word(size_t offset)
{
	return atomic_load((_Atomic uint32_t *)(void *)&page[offset]);
}

static uint64_t take(int fd)
{
	eventfd_t count = 0;

	(void)eventfd_read(fd, &count);
	return count;
}

static struct bench open_bench(void)
{
	struct bench bench = {
		.irq_fd = eventfd(0, EFD_NONBLOCK), .broken_fd = eventfd(0, EFD_NONBLOCK),
	};

	memset(page, 0, sizeof(page));
	CHECK_EQ(pv_virtio_irq_new(page, bench.irq_fd, bench.broken_fd, &bench.irq), 0);
	return bench;
}

static void close_bench(struct bench *bench)
{
	pv_virtio_irq_free(bench->irq);
	close(bench->irq_fd);
	close(bench->broken_fd);
}

static void *raise_both(void *opaque)
{
	for (int i = 0; i < ROUNDS; i++) {
		pv_virtio_irq_used(opaque);
		pv_virtio_irq_config(opaque);
	}
	return NULL;
}

static void *break_it(void *opaque)
{
	pv_virtio_irq_broken(opaque, "broken");
	return NULL;
}

static void start(pthread_t *threads, void *(*run)(void *), struct pv_virtio_irq *irq)
{
	for (int i = 0; i < THREADS; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, run, irq), 0);
}

static void join(pthread_t *threads)
{
	for (int i = 0; i < THREADS; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
}

static void test_a_page_that_cannot_be_is_refused(void)
{
	struct pv_virtio_irq *irq;

	CHECK_EQ(pv_virtio_irq_new(NULL, -1, -1, &irq), -EINVAL);
	CHECK_EQ(pv_virtio_irq_new(page + 4, -1, -1, &irq), -EINVAL);
	CHECK_EQ(pv_virtio_irq_new(page + 2048, -1, -1, &irq), -EINVAL);
}

/* Of 31 bytes at most, and no part of a character. */
static void test_a_name_is_cut_between_characters(void)
{
	static const char *const NAMES[][2] = {
		{"disk", "disk"},
		{"0123456789012345678901234567890", "0123456789012345678901234567890"},
		{"01234567890123456789012345678901", "0123456789012345678901234567890"},
		{"012345678901234567890123456789\xc3\xa9", "012345678901234567890123456789"},
		{"01234567890123456789012345678\xe2\x82\xac", "01234567890123456789012345678"},
	};
	struct bench bench = open_bench();

	for (unsigned i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
		pv_virtio_irq_set_name(bench.irq, NAMES[i][0]);
		CHECK_EQ(strcmp(pv_virtio_irq_name(bench.irq), NAMES[i][1]), 0);
	}
	close_bench(&bench);
}

static void test_no_bit_and_no_edge_is_lost(void)
{
	struct bench bench = open_bench();
	uint64_t raised = 2 * THREADS * ROUNDS;
	uint64_t edges = 0;
	pthread_t threads[THREADS];

	start(threads, raise_both, bench.irq);
	while (pv_virtio_irq_count(bench.irq) < raised) {
		edges += take(bench.irq_fd);
		pv_virtio_irq_ack(bench.irq, word(INTERRUPT_STATUS));
	}
	join(threads);
	CHECK_EQ(edges + take(bench.irq_fd), raised);
	pv_virtio_irq_ack(bench.irq, 3);
	pv_virtio_irq_used(bench.irq);
	CHECK_EQ(word(INTERRUPT_STATUS), 1);
	pv_virtio_irq_config(bench.irq);
	CHECK_EQ(word(INTERRUPT_STATUS), 3);
	close_bench(&bench);
}

static void test_a_device_breaks_once_in_a_life(void)
{
	struct bench bench = open_bench();
	pthread_t threads[THREADS];

	for (int life = 0; life < 50; life++) {
		pv_virtio_irq_add_status(bench.irq, 15);
		start(threads, break_it, bench.irq);
		join(threads);
		CHECK_EQ(word(STATUS), 15 | NEEDS_RESET);
		CHECK_EQ(word(INTERRUPT_STATUS), 2);
		CHECK_EQ(take(bench.irq_fd), 1);
		CHECK_EQ(take(bench.broken_fd), 1);
		check_reason(bench.irq, "broken");
		pv_virtio_irq_reset(bench.irq);
		CHECK_EQ(word(STATUS) | word(INTERRUPT_STATUS), 0);
	}
	close_bench(&bench);
}

static void *look_for_reasons(void *opaque)
{
	char why[PV_VIRTIO_WHY_BYTES];

	for (int i = 0; i < ROUNDS; i++)
		if (pv_virtio_irq_take_reason(opaque, why))
			CHECK(strcmp(why, "one way") == 0 || strcmp(why, "another") == 0);
	return NULL;
}

/* Whole lines, whatever the driver does meanwhile. */
static void test_reasons_are_taken_while_a_driver_resets_and_breaks(void)
{
	struct bench bench = open_bench();
	pthread_t threads[THREADS];

	start(threads, look_for_reasons, bench.irq);
	for (int life = 0; life < ROUNDS; life++) {
		pv_virtio_irq_broken(bench.irq, life % 2 ? "one way" : "another");
		pv_virtio_irq_reset(bench.irq);
	}
	join(threads);
	close_bench(&bench);
}

/* The kernel raises the line by itself then, so a driver that asks finds the bit. */
static void test_a_line_that_is_lent_leaves_its_bit_standing(void)
{
	struct bench bench = open_bench();

	CHECK_EQ(pv_virtio_irq_lend(bench.irq), bench.irq_fd);
	CHECK_EQ(word(INTERRUPT_STATUS), 1);
	CHECK_EQ(take(bench.irq_fd), 0);
	pv_virtio_irq_config(bench.irq);
	pv_virtio_irq_ack(bench.irq, 3);
	CHECK_EQ(word(INTERRUPT_STATUS), 1);
	pv_virtio_irq_reset(bench.irq);
	CHECK_EQ(word(INTERRUPT_STATUS), 0);
	pv_virtio_irq_used(bench.irq);
	pv_virtio_irq_ack(bench.irq, 1);
	CHECK_EQ(word(INTERRUPT_STATUS), 0);
	close_bench(&bench);
}

static void test_of_the_configuration_the_bits_asked_for_are_cleared(void)
{
	static const uint8_t value[] = {0xff, 0xff, 0xff};
	struct bench bench = open_bench();

	pv_virtio_irq_set_config(bench.irq, 5, value, sizeof(value));
	pv_virtio_irq_clear_config(bench.irq, 6, 0x12);
	CHECK_EQ(page[0x105], 0xff);
	CHECK_EQ(page[0x106], 0xed);
	CHECK_EQ(page[0x107], 0xff);
	close_bench(&bench);
}

static void test_news_and_configuration_raise_no_interrupt(void)
{
	struct bench bench = open_bench();

	pv_virtio_irq_set_config(bench.irq, 3, "abc", 3);
	CHECK_EQ(memcmp(page + 0x100, "\0\0\0abc\0", 7), 0);
	pv_virtio_irq_news(bench.irq);
	CHECK_EQ(take(bench.broken_fd), 1);
	check_reason(bench.irq, NULL);
	CHECK_EQ(word(INTERRUPT_STATUS) | word(STATUS), 0);
	CHECK_EQ(take(bench.irq_fd), 0);
	close_bench(&bench);
}

static int add_rule(struct bench *bench, uint32_t kind, uint64_t count)
{
	struct pv_fault fault = {.kind = kind, .ops = PV_FAULT_INTERRUPT, .last = UINT64_MAX,
	                         .every = 1, .count = count};

	return pv_faults_add(pv_virtio_irq_faults(bench->irq), &fault);
}

static void test_interrupts_that_are_lost(void)
{
	struct bench bench = open_bench();

	CHECK_EQ(add_rule(&bench, PV_FAULT_DROP, 2), 1);
	for (int i = 0; i < 2; i++) {
		pv_virtio_irq_used(bench.irq);
		CHECK_EQ(word(INTERRUPT_STATUS), 1);
		CHECK_EQ(take(bench.irq_fd), 0);
		pv_virtio_irq_ack(bench.irq, 1);
	}
	/* Of the configuration it loses none. */
	pv_virtio_irq_config(bench.irq);
	CHECK_EQ(take(bench.irq_fd), 1);
	pv_virtio_irq_used(bench.irq);
	CHECK_EQ(take(bench.irq_fd), 1);
	CHECK_EQ(pv_virtio_irq_count(bench.irq), 2);
	pv_virtio_irq_ack(bench.irq, 3);
	for (int i = 0; i < 2; i++) {
		pv_virtio_irq_make_up(bench.irq);
		CHECK_EQ(word(INTERRUPT_STATUS), 1);
		CHECK_EQ(take(bench.irq_fd), i == 0);
	}
	close_bench(&bench);
}

static void test_interrupts_that_come_twice(void)
{
	struct bench bench = open_bench();

	CHECK_EQ(add_rule(&bench, PV_FAULT_DOUBLE, 1), 1);
	for (int i = 0; i < 2; i++) {
		pv_virtio_irq_used(bench.irq);
		CHECK_EQ(take(bench.irq_fd), 1);
		CHECK_EQ(take(bench.broken_fd), i == 0);
		pv_virtio_irq_ack(bench.irq, 1);
		pv_virtio_irq_echo(bench.irq);
		CHECK_EQ(take(bench.irq_fd), i == 0);
		CHECK_EQ(word(INTERRUPT_STATUS), i == 0);
	}
	/* Not beyond a reset. */
	CHECK_EQ(add_rule(&bench, PV_FAULT_DOUBLE, 1), 2);
	pv_virtio_irq_used(bench.irq);
	CHECK_EQ(take(bench.irq_fd), 1);
	pv_virtio_irq_reset(bench.irq);
	pv_virtio_irq_echo(bench.irq);
	CHECK_EQ(take(bench.irq_fd), 0);
	close_bench(&bench);
}

int main(void)
{
	RUN(test_a_page_that_cannot_be_is_refused);
	RUN(test_a_name_is_cut_between_characters);
	RUN(test_no_bit_and_no_edge_is_lost);
	RUN(test_a_device_breaks_once_in_a_life);
	RUN(test_reasons_are_taken_while_a_driver_resets_and_breaks);
	RUN(test_a_line_that_is_lent_leaves_its_bit_standing);
	RUN(test_of_the_configuration_the_bits_asked_for_are_cleared);
	RUN(test_news_and_configuration_raise_no_interrupt);
	RUN(test_interrupts_that_are_lost);
	RUN(test_interrupts_that_come_twice);
	return 0;
}
