/* A balloon device with its thread: every queue at work at once, statistics that are asked for, and
 * turns that end before a hostile driver's list does. */
#include <errno.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include "balloon/internal.h"
#include "tests/virtio/guest.h"

enum { MIB = 1 << 20, RAM = 64 * MIB, LISTS = 1 * MIB, BUFFER = 2 * MIB, FREE = 16 * MIB };
enum { PAGE = PV_BALLOON_PAGE, PAGES = 256 };

struct bench {
	struct guest guest;
	struct queue queues[PV_BALLOON_QUEUES];
	struct pv_balloon *balloon;
};

/* What the host says of every file. */
static struct statfs host;
static int host_error;

int fstatfs(int fd, struct statfs *out)
{
	(void)fd;
	*out = host;
	errno = host_error;
	return host_error ? -1 : 0;
}

static struct pv_balloon_activation make_queues(struct bench *b)
{
	struct pv_balloon_activation activation = {.memory = b->guest.memory, .irq = b->guest.irq};

	for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++)
		queue_make(&b->guest, &b->queues[i], i, true, false);
	activation.inflate = served(&b->queues[PV_BALLOON_INFLATE]);
	activation.deflate = served(&b->queues[PV_BALLOON_DEFLATE]);
	activation.reporting = served(&b->queues[PV_BALLOON_REPORT]);
	activation.statistics = served(&b->queues[PV_BALLOON_TELL]);
	return activation;
}

static void unmake_queues(struct bench *b)
{
	for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++)
		queue_unmake(&b->queues[i]);
}

static void start(struct bench *b)
{
	struct pv_balloon_activation activation = make_queues(b);

	CHECK_EQ(pv_balloon_start(b->balloon, &activation), 0);
	CHECK_EQ(pv_balloon_start(b->balloon, &activation), -EBUSY);
}

static void stop(struct bench *b)
{
	CHECK_EQ(pv_balloon_stop(b->balloon, PV_FOREVER), 0);
	CHECK_EQ(pv_balloon_stop(b->balloon, PV_FOREVER), 0);
	pv_virtio_irq_reset(b->guest.irq);
	unmake_queues(b);
}

static void make(struct bench *b)
{
	memset(b, 0, sizeof(*b));
	guest_make(&b->guest, RAM);
	CHECK_EQ(pv_balloon_new(&b->balloon), 0);
}

static void unmake(struct bench *b)
{
	pv_balloon_free(b->balloon);
	guest_unmake(&b->guest);
}

static void offer(struct bench *b, unsigned index, uint64_t address, uint32_t length, bool writable)
{
	struct queue *q = &b->queues[index];
	uint16_t head = q->free;

	queue_describe(q, address, length, writable, false);
	queue_put(q, head);
	show(q);
	kick(q);
}

/* A list of PAGES pages from `first` on, for the queue. */
static void list(struct bench *b, unsigned index, uint32_t first)
{
	uint64_t at = LISTS + index * UINT64_C(4096);
	uint32_t *pages = (uint32_t *)(void *)(b->guest.ram + at);

	for (uint32_t i = 0; i < PAGES; i++)
		pages[i] = first + i;
	offer(b, index, at, PAGES * sizeof(*pages), false);
}

static struct pv_balloon_stats stats(const struct bench *b)
{
	struct pv_balloon_stats stats;

	pv_balloon_stats(b->balloon, &stats);
	return stats;
}

static void tell_of(struct bench *b, uint16_t tag, uint64_t value)
{
	memcpy(b->guest.ram + BUFFER, &tag, sizeof(tag));
	memcpy(b->guest.ram + BUFFER + 2, &value, sizeof(value));
	offer(b, PV_BALLOON_TELL, BUFFER, 10, false);
}

static void tell(struct bench *b, uint64_t available)
{
	tell_of(b, 6, available);
}

static void test_all_queues_at_once(void)
{
	struct pv_balloon_statistics statistics;
	struct bench b;

	make(&b);
	start(&b);
	memset(b.guest.ram + FREE, 'x', 32 * MIB);
	pv_balloon_poll(b.balloon, 1, 1);
	for (uint32_t round = 0; round < 16; round++) {
		uint32_t first = FREE / PAGE + round * PAGES;

		tell(&b, round);
		list(&b, PV_BALLOON_INFLATE, first);
		list(&b, PV_BALLOON_DEFLATE, first);
		offer(&b, PV_BALLOON_REPORT, FREE + 16 * MIB + round * (uint64_t)MIB, MIB, true);
		for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++)
			WAIT_FOR(used(&b.queues[i]) == round + 1);
	}
	for (size_t i = 0; i < 32 * MIB; i += 511)
		CHECK_EQ(b.guest.ram[FREE + i], 0);
	CHECK_EQ(stats(&b).inflated, 16 * PAGES);
	CHECK_EQ(stats(&b).deflated, 16 * PAGES);
	CHECK_EQ(stats(&b).reported, 16 * PAGES);
	CHECK_EQ(stats(&b).released, 32 * PAGES);
	CHECK_EQ(stats(&b).releases, 32);
	CHECK_EQ(stats(&b).statistics, 16);
	pv_balloon_statistics(b.balloon, &statistics);
	CHECK_EQ(statistics.count, 16);
	CHECK_EQ(statistics.values[6], 15);
	CHECK_EQ(statistics.values[5], UINT64_MAX);
	stop(&b);
	unmake(&b);
}

static void test_statistics_are_asked_for_by_time(void)
{
	struct pv_balloon_activation activation;
	struct bench b;

	make(&b);
	activation = make_queues(&b);
	pv_balloon_begin(b.balloon, &activation);
	pv_balloon_poll(b.balloon, 0, 1);
	tell(&b, 1);
	pv_balloon_serve(b.balloon, 1000);
	CHECK_EQ(used(&b.queues[PV_BALLOON_TELL]), 0);
	CHECK_EQ(pv_virtio_irq_count(b.guest.irq), 0);
	pv_balloon_poll(b.balloon, 50, 1);
	pv_balloon_serve(b.balloon, 1000);
	CHECK_EQ(used(&b.queues[PV_BALLOON_TELL]), 1);
	/* The driver wants to know of the first, and of no other. */
	CHECK_EQ(pv_virtio_irq_count(b.guest.irq), 1);
	/* Of what it was not asked for nobody is told. */
	CHECK(!readable(b.guest.broken_fd, 0));
	tell(&b, 2);
	pv_balloon_serve(b.balloon, 1049);
	CHECK(readable(b.guest.broken_fd, 0));
	CHECK_EQ(used(&b.queues[PV_BALLOON_TELL]), 1);
	CHECK_EQ(stats(&b).statistics, 2);
	pv_balloon_serve(b.balloon, 1050);
	CHECK_EQ(used(&b.queues[PV_BALLOON_TELL]), 2);
	pv_balloon_serve(b.balloon, 2000);
	CHECK_EQ(used(&b.queues[PV_BALLOON_TELL]), 2);
	tell(&b, 3);
	b.balloon->queues[PV_BALLOON_TELL].wait = PV_BALLOON_MORE; /* the kick */
	pv_balloon_poll(b.balloon, 0, 0);
	pv_balloon_serve(b.balloon, 3000);
	CHECK_EQ(used(&b.queues[PV_BALLOON_TELL]), 2);
	CHECK_EQ(stats(&b).statistics, 3);
	CHECK_EQ(pv_virtio_irq_count(b.guest.irq), 1);
	/* Another driver is asked at once. */
	unmake_queues(&b);
	activation = make_queues(&b);
	pv_balloon_begin(b.balloon, &activation);
	pv_balloon_poll(b.balloon, 5000, 0);
	tell(&b, 4);
	pv_balloon_serve(b.balloon, 3001);
	CHECK_EQ(used(&b.queues[PV_BALLOON_TELL]), 1);
	unmake_queues(&b);
	unmake(&b);
}

/* Nothing but the time wakes the thread for the second. */
static void test_a_thread_asks_for_statistics_by_time(void)
{
	struct bench b;

	make(&b);
	start(&b);
	pv_balloon_poll(b.balloon, 5000000, 0);
	for (uint16_t i = 1; i < 4; i++) {
		tell(&b, i);
		WAIT_FOR(used(&b.queues[PV_BALLOON_TELL]) == i);
	}
	stop(&b);
	unmake(&b);
}

static void test_statistics_of_unknown_tags(void)
{
	struct pv_balloon_statistics statistics;
	struct bench b;

	make(&b);
	start(&b);
	pv_balloon_poll(b.balloon, 1, 0);
	for (uint16_t i = 0; i < 4; i++) {
		static const uint16_t TAGS[] = {
			PV_BALLOON_TAGS - 1, PV_BALLOON_TAGS, 2 * PV_BALLOON_TAGS, UINT16_MAX,
		};

		tell_of(&b, TAGS[i], i);
		WAIT_FOR(used(&b.queues[PV_BALLOON_TELL]) == i + 1);
	}
	pv_balloon_statistics(b.balloon, &statistics);
	CHECK_EQ(statistics.count, 4);
	for (unsigned i = 0; i < PV_BALLOON_TAGS; i++)
		CHECK_EQ(statistics.values[i], i == PV_BALLOON_TAGS - 1 ? 0 : UINT64_MAX);
	CHECK_EQ(stats(&b).inflated, 0);
	stop(&b);
	unmake(&b);
}

/* One list of ten million pages, all the same: a turn looks at 1,024 of them. */
static void test_a_long_list_takes_turns(void)
{
	struct pv_balloon_activation activation;
	struct bench b;
	struct queue *q;

	make(&b);
	activation = make_queues(&b);
	pv_balloon_begin(b.balloon, &activation);
	q = &b.queues[PV_BALLOON_INFLATE];
	offer(&b, PV_BALLOON_INFLATE, FREE, 40 * MIB, false);
	pv_balloon_serve(b.balloon, 1);
	CHECK_EQ(stats(&b).inflated, PV_BALLOON_PIECE);
	CHECK_EQ(pv_virtqueue_in_flight(q->ring), 0);
	/* It shrinks meanwhile: what was taken of it is all of it. */
	q->desc[0].length = 400;
	pv_balloon_serve(b.balloon, 1);
	CHECK_EQ(used(q), 1);
	CHECK_EQ(stats(&b).inflated, PV_BALLOON_PIECE);
	list(&b, PV_BALLOON_INFLATE, FREE / PAGE);
	q = &b.queues[PV_BALLOON_INFLATE];
	b.balloon->queues[PV_BALLOON_INFLATE].wait = PV_BALLOON_MORE; /* the kick */
	pv_balloon_serve(b.balloon, 1);
	CHECK_EQ(used(q), 2);
	CHECK_EQ(stats(&b).inflated, PV_BALLOON_PIECE + PAGES);
	unmake_queues(&b);
	unmake(&b);
}

/* A turn gives back 16 MiB; the report stays in the ring until all of it is. */
static void test_a_large_report_takes_turns(void)
{
	const uint64_t turn = 16 * MIB / PAGE;
	struct pv_balloon_activation activation;
	struct bench b;

	make(&b);
	activation = make_queues(&b);
	pv_balloon_begin(b.balloon, &activation);
	offer(&b, PV_BALLOON_REPORT, FREE, 40 * MIB, true);
	for (unsigned i = 1; i < 3; i++) {
		pv_balloon_serve(b.balloon, 1);
		CHECK_EQ(stats(&b).reported, i * turn);
		CHECK_EQ(used(&b.queues[PV_BALLOON_REPORT]), 0);
		CHECK_EQ(pv_virtqueue_in_flight(b.queues[PV_BALLOON_REPORT].ring), 0);
	}
	pv_balloon_serve(b.balloon, 1);
	CHECK_EQ(stats(&b).reported, 40 * MIB / PAGE);
	CHECK_EQ(stats(&b).released, 40 * MIB / PAGE);
	CHECK_EQ(used(&b.queues[PV_BALLOON_REPORT]), 1);
	unmake_queues(&b);
	unmake(&b);
}

static void check_host_page(struct bench *b, uint32_t type, uint32_t block, uint64_t page)
{
	struct pv_balloon_activation activation = make_queues(b);

	host.f_type = (__typeof__(host.f_type))type;
	host.f_bsize = block;
	pv_balloon_begin(b->balloon, &activation);
	CHECK_EQ(b->balloon->host_page, page);
	unmake_queues(b);
}

static void test_how_large_the_hosts_pages_are(void)
{
	const struct pv_memory_file file = {.size = MIB, .fd = -1};
	struct bench b;

	make(&b);
	check_host_page(&b, HUGETLBFS_MAGIC, 2 * MIB, PAGE); /* no file */
	CHECK_EQ(pv_memory_share(b.guest.memory, &file), 0);
	check_host_page(&b, HUGETLBFS_MAGIC, 2 * MIB, 2 * MIB);
	check_host_page(&b, TMPFS_MAGIC, 2 * MIB, PAGE);
	host_error = EIO;
	check_host_page(&b, HUGETLBFS_MAGIC, 2 * MIB, PAGE);
	host_error = 0;
	unmake(&b);
}

/* Where guest memory consists of them, as hugetlbfs's do. */
static void test_no_part_of_a_huge_page_is_given_back(void)
{
	const uint64_t huge = 2 * MIB;
	struct pv_balloon_activation activation;
	struct bench b;
	uint64_t lead;

	make(&b);
	activation = make_queues(&b);
	pv_balloon_begin(b.balloon, &activation);
	CHECK_EQ(b.balloon->host_page, PAGE);
	b.balloon->host_page = huge;
	memset(b.guest.ram + FREE, 'x', 8 * MIB);
	lead = -(uintptr_t)(b.guest.ram + FREE) & (huge - 1);
	offer(&b, PV_BALLOON_REPORT, FREE + lead + PAGE, 5 * MIB, true);
	list(&b, PV_BALLOON_INFLATE, (uint32_t)((FREE + lead) / PAGE));
	pv_balloon_serve(b.balloon, 1);
	CHECK_EQ(used(&b.queues[PV_BALLOON_REPORT]), 1);
	CHECK_EQ(used(&b.queues[PV_BALLOON_INFLATE]), 1);
	CHECK_EQ(stats(&b).released, huge / PAGE);
	CHECK_EQ(stats(&b).kept, 3 * MIB / PAGE + PAGES);
	CHECK_EQ(stats(&b).releases, 1);
	CHECK_EQ(b.guest.ram[FREE + lead], 'x');
	CHECK_EQ(b.guest.ram[FREE + lead + huge - 1], 'x');
	CHECK_EQ(b.guest.ram[FREE + lead + huge], 0);
	CHECK_EQ(b.guest.ram[FREE + lead + 2 * huge - 1], 0);
	CHECK_EQ(b.guest.ram[FREE + lead + 2 * huge], 'x');
	unmake_queues(&b);
	unmake(&b);
}

static void test_a_broken_device_stops_and_starts(void)
{
	eventfd_t told;
	struct bench b;

	make(&b);
	start(&b);
	offer(&b, PV_BALLOON_INFLATE, FREE, 6, false);
	guest_check_broken(&b.guest, "a list of pages that ends in half a one");
	list(&b, PV_BALLOON_INFLATE, 0xffffff00);
	stop(&b);
	start(&b);
	list(&b, PV_BALLOON_INFLATE, 0xffffff00);
	WAIT_FOR(used(&b.queues[PV_BALLOON_INFLATE]) == 1);
	CHECK_EQ(stats(&b).refused, PAGES);
	CHECK_EQ(eventfd_read(b.guest.broken_fd, &told), 0);
	b.queues[PV_BALLOON_DEFLATE].offered = QUEUE_SIZE + 1;
	show(&b.queues[PV_BALLOON_DEFLATE]);
	kick(&b.queues[PV_BALLOON_DEFLATE]);
	guest_check_broken(&b.guest, "avail idx is 65, 65 ahead in a queue of 64");
	stop(&b);
	unmake(&b);
}

int main(void)
{
	RUN(test_all_queues_at_once);
	RUN(test_statistics_are_asked_for_by_time);
	RUN(test_a_thread_asks_for_statistics_by_time);
	RUN(test_statistics_of_unknown_tags);
	RUN(test_a_long_list_takes_turns);
	RUN(test_a_large_report_takes_turns);
	RUN(test_how_large_the_hosts_pages_are);
	RUN(test_no_part_of_a_huge_page_is_given_back);
	RUN(test_a_broken_device_stops_and_starts);
	return 0;
}
