/* The virtqueue between two threads: an honest driver that sleeps and is woken, with every byte
 * checked; and a hostile one that rewrites all it can while the device looks. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "tests/virtio/driver.h"
#include "virtio/virtqueue.h"

#if defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif

enum { SEGMENT = 24, HELD = 7 };

static uint32_t next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* Both ends of one queue, each woken by an eventfd and by nothing else. */
struct bench {
	struct driver driver;
	struct pv_virtqueue *queue;
	size_t buffers; /* SEGMENT bytes for each head */
	uint32_t chains;
	int kick, irq;
	_Atomic int done;
	uint32_t kicks, irqs; /* by driver and device */
};

static void signal_fd(int fd)
{
	uint64_t one = 1;

	CHECK_EQ(write(fd, &one, sizeof(one)), sizeof(one));
}

/* A lost notification shows here. */
static void wait_fd(int fd)
{
	uint64_t count;

	CHECK(readable(fd, 10000));
	CHECK_EQ(read(fd, &count, sizeof(count)), sizeof(count));
}

/* The readable bytes hold a number, and come back complemented in the writable ones. */
static uint32_t serve(const struct pv_chain *chain)
{
	uint8_t bytes[SEGMENT] = {0};
	size_t count = 0;

	CHECK_EQ(chain->readable_bytes, chain->writable_bytes);
	CHECK(chain->readable_bytes <= sizeof(bytes));
	for (unsigned i = 0; i < chain->readable; i++) {
		memcpy(bytes + count, chain->iov[i].iov_base, chain->iov[i].iov_len);
		count += chain->iov[i].iov_len;
	}
	count = 0;
	for (unsigned i = chain->readable; i < (unsigned)chain->readable + chain->writable; i++) {
		uint8_t *to = chain->iov[i].iov_base;

		for (size_t at = 0; at < chain->iov[i].iov_len; at++)
			to[at] = (uint8_t)~bytes[count++];
	}
	return (uint32_t)count;
}

struct completion {
	uint16_t head;
	uint32_t written;
};

static void push_all(struct bench *bench, struct completion *held, unsigned *count, uint32_t *seed)
{
	while (*count > 0) {
		unsigned which = next_random(seed) % *count;

		CHECK_EQ(pv_virtqueue_push(bench->queue, held[which].head, held[which].written), 0);
		held[which] = held[--*count];
	}
	pv_virtqueue_publish(bench->queue);
	if (pv_virtqueue_needs_notify(bench->queue)) {
		bench->irqs++;
		signal_fd(bench->irq);
	}
}

static void *device_thread(void *opaque)
{
	struct bench *bench = opaque;
	struct pv_chain *chain = malloc(sizeof(*chain));
	struct completion held[HELD];
	unsigned count = 0;
	uint32_t seed = 0x5eed;

	CHECK(chain);
	for (;;) {
		pv_virtqueue_disable_kicks(bench->queue);
		while (pv_virtqueue_pop(bench->queue, chain) == 1) {
			held[count++] = (struct completion){chain->head, serve(chain)};
			if (count == HELD || next_random(&seed) % 4 == 0)
				push_all(bench, held, &count, &seed);
		}
		push_all(bench, held, &count, &seed);
		CHECK(pv_virtqueue_error(bench->queue) == NULL);
		if (pv_virtqueue_enable_kicks(bench->queue))
			continue;
		if (atomic_load(&bench->done))
			break;
		wait_fd(bench->kick);
	}
	CHECK_EQ(pv_virtqueue_in_flight(bench->queue), 0);
	free(chain);
	return NULL;
}

/* Split `length` bytes at a place of chance. */
static uint16_t split(struct pv_desc *segments, uint64_t address, uint16_t flags, uint32_t length,
                      uint32_t *seed)
{
	uint32_t first = next_random(seed) % length;

	if (first == 0) {
		*segments = (struct pv_desc){address, length, flags, 0};
		return 1;
	}
	segments[0] = (struct pv_desc){address, first, flags, 0};
	segments[1] = (struct pv_desc){address + first, length - first, flags, 0};
	return 2;
}

static void offer(struct bench *bench, uint32_t number, uint32_t *seed)
{
	struct driver *driver = &bench->driver;
	struct pv_desc segments[4];
	uint64_t at = bench->buffers + (uint64_t)SEGMENT * driver->free_head;
	uint16_t count;

	memcpy(driver->ram + at, &number, sizeof(number));
	if (!driver->config.indirect && driver->free_count < 4) {
		segments[0] = (struct pv_desc){at, sizeof(number), 0, 0};
		segments[1] = (struct pv_desc){at + 8, sizeof(number), PV_DESC_WRITE, 0};
		driver_add(driver, segments, 2);
		return;
	}
	count = split(segments, at, 0, sizeof(number), seed);
	count = (uint16_t)(count + split(segments + count, at + 8, PV_DESC_WRITE, sizeof(number),
	                                 seed));
	if (driver->config.indirect && (driver->free_count < 4 || next_random(seed) % 2))
		driver_add_indirect(driver, segments, count);
	else
		driver_add(driver, segments, count);
}

/* The sum of the numbers that came back. */
static uint64_t collect(struct bench *bench, uint32_t *in_flight)
{
	uint64_t sum = 0;
	uint32_t length, number;
	uint16_t head;

	while (driver_collect(&bench->driver, &head, &length)) {
		CHECK_EQ(length, sizeof(number));
		memcpy(&number, bench->driver.ram + bench->buffers + (size_t)SEGMENT * head + 8,
		       sizeof(number));
		sum += ~number;
		--*in_flight;
	}
	return sum;
}

static void run_driver(struct bench *bench)
{
	uint32_t seed = 0xd21fe2, offered = 0, in_flight = 0;
	uint32_t least = bench->driver.config.indirect ? 1 : 2;
	uint64_t sum = 0;

	while (offered < bench->chains || in_flight > 0) {
		uint32_t batch = 1 + next_random(&seed) % bench->driver.config.size;

		driver_disable_interrupts(&bench->driver);
		while (offered < bench->chains && batch-- && bench->driver.free_count >= least) {
			offer(bench, offered++, &seed);
			in_flight++;
		}
		if (driver_publish(&bench->driver)) {
			bench->kicks++;
			signal_fd(bench->kick);
		}
		sum += collect(bench, &in_flight);
		if (in_flight == 0 || (offered < bench->chains && bench->driver.free_count >= least))
			continue;
		if (!driver_enable_interrupts(&bench->driver))
			wait_fd(bench->irq);
		sum += collect(bench, &in_flight);
	}
	CHECK_EQ(sum, (uint64_t)bench->chains * (bench->chains - 1) / 2);
}

static void hammer(uint16_t size, int event_idx, int indirect, uint32_t chains)
{
	struct bench bench = {.chains = chains};
	pthread_t device;

	bench.buffers = driver_init(&bench.driver, size, event_idx, indirect,
	                            (size_t)SEGMENT * size);
	CHECK_EQ(pv_virtqueue_new(bench.driver.memory, &bench.driver.config, &bench.queue), 0);
	bench.kick = eventfd(0, EFD_CLOEXEC);
	bench.irq = eventfd(0, EFD_CLOEXEC);
	CHECK(bench.kick >= 0 && bench.irq >= 0);
	CHECK(pthread_create(&device, NULL, device_thread, &bench) == 0);
	run_driver(&bench);
	atomic_store(&bench.done, 1);
	signal_fd(bench.kick);
	CHECK(pthread_join(device, NULL) == 0);
	/* One notification each for every chain would be none saved. */
	if (size > 2)
		CHECK(bench.kicks < chains && bench.irqs < chains);
	close(bench.kick);
	close(bench.irq);
	pv_virtqueue_free(bench.queue);
	driver_destroy(&bench.driver);
}

static void test_no_byte_and_no_notification_is_lost(void)
{
	static const uint16_t sizes[] = {2, 4, 64, 1024};

	for (int features = 0; features < 4; features++)
		for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
			hammer(sizes[i], features & 1, features >> 1, 10000);
	hammer(1, 0, 1, 3000);
	hammer(1, 1, 1, 3000);
}

static void test_indexes_wrap_between_threads(void)
{
	hammer(64, 0, 0, 140000);
	hammer(64, 1, 1, 140000);
}

#ifndef THREAD_SANITIZER

struct hostile {
	struct driver driver;
	_Atomic int done;
};

/* Fields that are nearly right get furthest. */
static struct pv_desc nasty(const struct driver *driver, uint32_t *seed)
{
	uint32_t random = next_random(seed);
	struct pv_desc desc = {
		.address = random % driver->ram_size,
		.length = next_random(seed) % 64,
		.flags = (uint16_t)(random >> 28 & 3),
		.next = (uint16_t)(next_random(seed) % (driver->config.size + 1)),
	};

	if (next_random(seed) % 8 == 0) {
		desc.address = (uint64_t)((uint8_t *)driver->tables - driver->ram) + (random & 0xff0);
		desc.length = 16 * (random >> 12 & 15);
		desc.flags = PV_DESC_INDIRECT;
	}
	if (next_random(seed) % 16 == 0)
		desc.length = (uint32_t)driver->ram_size - (uint32_t)desc.address + random % 3;
	if (next_random(seed) % 64 == 0)
		desc.address -= driver->ram_size;
	return desc;
}

static void *hostile_thread(void *opaque)
{
	struct hostile *hostile = opaque;
	struct driver *driver = &hostile->driver;
	uint16_t size = driver->config.size;
	uint32_t seed = 0xbad;

	while (!atomic_load_explicit(&hostile->done, memory_order_relaxed)) {
		uint32_t random = next_random(&seed);
		volatile struct pv_desc *table = random & 1 ? driver->tables : driver->desc;
		uint32_t count = random & 1 ? DRIVER_TABLE * (uint32_t)size : size;

		table[next_random(&seed) % count] = nasty(driver, &seed);
		__atomic_store_n(&driver->avail->ring[random >> 8 & (size - 1u)],
		                 (uint16_t)(random >> 20 & (size | (size - 1u))), __ATOMIC_RELAXED);
		/* Just ahead of the device, mostly; an idx from nowhere would end it at once. */
		__atomic_store_n(&driver->avail->idx,
		                 (uint16_t)(driver->used->idx + (random >> 16 & 7)), __ATOMIC_RELEASE);
	}
	return NULL;
}

/* Touch both ends of every segment, as a device would. */
static uint32_t touch(const struct driver *driver, const struct pv_chain *chain)
{
	uint64_t bytes = 0;
	unsigned sum = 0;

	for (unsigned i = 0; i < (unsigned)chain->readable + chain->writable; i++) {
		volatile uint8_t *at = chain->iov[i].iov_base;
		size_t length = chain->iov[i].iov_len;

		CHECK(length > 0 && at >= driver->ram);
		CHECK(at + length <= driver->ram + driver->ram_size);
		sum += at[0] + at[length - 1];
		bytes += length;
	}
	CHECK_EQ(bytes, chain->readable_bytes + chain->writable_bytes);
	return sum;
}

/* Some chains stay in flight, so that heads come twice. */
static uint64_t serve_until_broken(struct hostile *hostile, struct pv_virtqueue *queue,
                                   struct pv_chain *chain)
{
	uint64_t served = 0;
	int result;

	while ((result = pv_virtqueue_pop(queue, chain)) >= 0) {
		if (result == 0)
			continue;
		served++;
		CHECK(chain->head < hostile->driver.config.size);
		if (touch(&hostile->driver, chain) % 8)
			CHECK_EQ(pv_virtqueue_push(queue, chain->head, 0), 0);
		pv_virtqueue_publish(queue);
		(void)pv_virtqueue_needs_notify(queue);
		(void)pv_virtqueue_enable_kicks(queue);
	}
	CHECK_EQ(result, -EPROTO);
	CHECK(pv_virtqueue_error(queue) && strlen(pv_virtqueue_error(queue)) > 8);
	return served;
}

static void test_a_driver_that_rewrites_everything_meanwhile(void)
{
	struct hostile hostile = {0};
	struct pv_chain *chain = malloc(sizeof(*chain));
	uint64_t end = now_ns() + UINT64_C(1500000000), served = 0, broken = 0;
	pthread_t driver;

	CHECK(chain);
	driver_init(&hostile.driver, 16, 0, 1, 1000);
	CHECK(pthread_create(&driver, NULL, hostile_thread, &hostile) == 0);
	while (now_ns() < end) {
		struct pv_virtqueue *queue;

		CHECK_EQ(pv_virtqueue_new(hostile.driver.memory, &hostile.driver.config, &queue), 0);
		served += serve_until_broken(&hostile, queue, chain);
		broken++;
		pv_virtqueue_free(queue);
		memset(hostile.driver.ram + hostile.driver.config.used, 0, 4);
	}
	atomic_store(&hostile.done, 1);
	CHECK(pthread_join(driver, NULL) == 0);
	fprintf(stderr, "  %llu chains served, %llu queues broken\n", (unsigned long long)served,
	        (unsigned long long)broken);
	CHECK(served > 1000 && broken > 100);
	free(chain);
	driver_destroy(&hostile.driver);
}

#endif

static uint16_t pop_head(struct pv_virtqueue *queue, struct pv_chain *chain)
{
	CHECK_EQ(pv_virtqueue_pop(queue, chain), 1);
	return chain->head;
}

/* What is put back comes again, and what another has served does not. */
static void test_a_queue_changes_hands(void)
{
	struct driver driver;
	struct pv_virtqueue *queue;
	struct pv_chain *chain = malloc(sizeof(*chain));
	uint64_t buffer = driver_init(&driver, 8, 0, 0, 64);
	struct pv_desc segment = {.address = buffer, .length = 64};
	uint16_t heads[6];

	CHECK_EQ(pv_virtqueue_new(driver.memory, &driver.config, &queue), 0);
	CHECK_EQ(pv_virtqueue_size(queue), 8);
	for (unsigned i = 0; i < 6; i++)
		heads[i] = driver_add(&driver, &segment, 1);
	driver_publish(&driver);
	for (unsigned i = 0; i < 4; i++)
		CHECK_EQ(pop_head(queue, chain), heads[i]);
	CHECK_EQ(pv_virtqueue_push(queue, heads[0], 0), 0);
	CHECK_EQ(pv_virtqueue_rewind(queue), 1);
	CHECK_EQ(pv_virtqueue_in_flight(queue), 0);
	CHECK_EQ(pv_virtqueue_push(queue, heads[1], 0), -EPROTO);
	for (unsigned i = 1; i < 4; i++)
		CHECK_EQ(pop_head(queue, chain), heads[i]);
	CHECK_EQ(pv_virtqueue_rewind(queue), 1);
	/* The other has served three more. */
	pv_virtqueue_seek(queue, 4);
	CHECK_EQ(pop_head(queue, chain), heads[4]);
	CHECK_EQ(pv_virtqueue_push(queue, heads[4], 0), 0);
	pv_virtqueue_publish(queue);
	CHECK_EQ(driver.used->idx, 5);
	CHECK_EQ(driver.used->ring[4].id, heads[4]);
	CHECK(pv_virtqueue_needs_notify(queue));
	free(chain);
	pv_virtqueue_free(queue);
	driver_destroy(&driver);
}

/* What was used before, somebody else has told of; and what is in flight is not offered again. */
static void test_a_queue_goes_on_elsewhere(void)
{
	static struct pv_chain chain;
	struct driver driver;
	struct pv_virtqueue *queue;

	driver_init(&driver, 8, 1, 0, 0);
	CHECK_EQ(pv_virtqueue_new(driver.memory, &driver.config, &queue), 0);
	pv_virtqueue_seek(queue, 5);
	CHECK_EQ(pv_virtqueue_needs_notify(queue), 0);
	pv_virtqueue_restore(queue, 9, 7);
	CHECK_EQ(pv_virtqueue_needs_notify(queue), 0);
	driver.avail->idx = 9;
	CHECK_EQ(pv_virtqueue_pop(queue, &chain), 0);
	pv_virtqueue_free(queue);
	driver_destroy(&driver);
}

/* What made the device look again is what it finds then: each look makes progress. */
static void test_an_index_that_goes_to_and_fro_keeps_nobody(void)
{
	struct pv_chain *chain = malloc(sizeof(*chain));
	struct pv_virtqueue *queue;
	struct pv_desc segment;
	struct driver d;
	size_t data = driver_init(&d, 16, 0, 0, 64);

	CHECK(chain);
	CHECK_EQ(pv_virtqueue_new(d.memory, &d.config, &queue), 0);
	segment = (struct pv_desc){.address = data, .length = 64};
	(void)driver_add(&d, &segment, 1);
	CHECK_EQ(pv_virtqueue_pop(queue, chain), 0);
	d.avail->idx = 1;
	CHECK_EQ(pv_virtqueue_enable_kicks(queue), 1);
	d.avail->idx = 0;
	CHECK_EQ(pv_virtqueue_pop(queue, chain), 1);
	pv_virtqueue_free(queue);
	driver_destroy(&d);
	free(chain);
}

int main(void)
{
	RUN(test_no_byte_and_no_notification_is_lost);
	RUN(test_indexes_wrap_between_threads);
	RUN(test_a_queue_changes_hands);
#ifndef THREAD_SANITIZER
	/* All of it is a race, which is the point. */
	RUN(test_a_driver_that_rewrites_everything_meanwhile);
#endif
	RUN(test_an_index_that_goes_to_and_fro_keeps_nobody);
	RUN(test_a_queue_goes_on_elsewhere);
	return 0;
}
