/* A fuzz target: the input is a driver that keeps no rule. Every fault that a sanitizer can see, an
 * endless loop, or a chain outside guest memory ends the run.
 *
 *     make fuzz TARGET=virtqueue
 *
 * The first two bytes choose the queue; then come instructions, a byte and what it takes. */
#include <errno.h>

#include "fuzz/input.h"

enum { LOW = 0x2000, HIGH = 0x800, HIGH_AT = 0x100000 };
enum { DESC_AT = 0, AVAIL_AT = 0x800, USED_AT = 0xa00, TABLE_AT = 0x1000 };

struct bench {
	uint8_t *low, *high; /* exactly as large as told, so that a byte too far is seen */
	struct pv_memory *memory;
	struct pv_virtqueue *queue;
	struct pv_virtqueue_config config;
	struct pv_chain chain;
	uint16_t in_flight;
};

static struct bench *bench_new(struct input *input)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	uint64_t bits = take(input, 1), features = take(input, 1);

	REQUIRE(bench);
	bench->low = aligned_alloc(16, LOW);
	bench->high = malloc(HIGH);
	REQUIRE(bench->low && bench->high && pv_memory_new(&bench->memory) == 0);
	memset(bench->low, 0, LOW);
	memset(bench->high, 0, HIGH);
	REQUIRE(pv_memory_add(bench->memory, 0, LOW, bench->low) == 0);
	REQUIRE(pv_memory_add(bench->memory, HIGH_AT, HIGH, bench->high) == 0);
	bench->config = (struct pv_virtqueue_config){
		.desc = DESC_AT,
		.avail = AVAIL_AT,
		.used = USED_AT,
		.size = (uint16_t)(1u << bits % 6),
		.event_idx = features & 1,
		.indirect = features >> 1 & 1,
	};
	REQUIRE(pv_virtqueue_new(bench->memory, &bench->config, &bench->queue) == 0);
	return bench;
}

static void bench_free(struct bench *bench)
{
	pv_virtqueue_free(bench->queue);
	pv_memory_free(bench->memory);
	free(bench->low);
	free(bench->high);
	free(bench);
}

static int inside(const struct bench *bench, const struct iovec *iov)
{
	const uint8_t *at = iov->iov_base;

	return (at >= bench->low && at + iov->iov_len <= bench->low + LOW) ||
	       (at >= bench->high && at + iov->iov_len <= bench->high + HIGH);
}

/* Everything that a device may rely on. */
static void pop(struct bench *bench)
{
	struct pv_chain *chain = &bench->chain;
	int broken = pv_virtqueue_error(bench->queue) != NULL;
	int result = pv_virtqueue_pop(bench->queue, chain);
	uint64_t readable = 0, writable = 0;

	REQUIRE(result == 1 || result == 0 || result == -EPROTO);
	REQUIRE((result < 0) == (pv_virtqueue_error(bench->queue) != NULL));
	REQUIRE(!broken || result < 0);
	if (result != 1)
		return;
	REQUIRE(chain->head < bench->config.size && chain->readable + chain->writable <= PV_CHAIN_MAX);
	for (unsigned i = 0; i < (unsigned)chain->readable + chain->writable; i++) {
		REQUIRE(chain->iov[i].iov_len > 0 && inside(bench, &chain->iov[i]));
		if (i < chain->readable) {
			readable += chain->iov[i].iov_len;
		} else {
			writable += chain->iov[i].iov_len;
			memset(chain->iov[i].iov_base, 0x5a, chain->iov[i].iov_len % 32);
		}
	}
	REQUIRE(readable == chain->readable_bytes && writable == chain->writable_bytes);
	bench->in_flight++;
}

static void push(struct bench *bench, uint16_t head)
{
	if (pv_virtqueue_push(bench->queue, head, 1) == 0)
		bench->in_flight--;
	pv_virtqueue_publish(bench->queue);
	(void)pv_virtqueue_needs_notify(bench->queue);
}

static void describe(struct bench *bench, struct input *input, size_t table, size_t mask)
{
	size_t place = table + (take(input, 1) & mask) * sizeof(struct pv_desc);
	uint8_t kind;
	struct pv_desc desc = take_desc(input, &kind);

	if (kind & 8)
		desc.address |= HIGH_AT;
	if (kind & 16)
		desc.address = 0 - desc.address;
	if (kind & 32)
		desc.length <<= 16;
	if (kind & 64)
		desc.address = TABLE_AT + (desc.address & 0xff0);
	if (kind & 128)
		desc.length = desc.length % 64 * 16;
	memcpy(bench->low + place, &desc, sizeof(desc));
}

static void instruct(struct bench *bench, struct input *input)
{
	struct pv_avail *avail = (struct pv_avail *)(void *)(bench->low + AVAIL_AT);
	uint16_t mask = (uint16_t)(bench->config.size - 1);
	size_t place;

	switch (take(input, 1) % 10) {
	case 0:
		describe(bench, input, DESC_AT, mask);
		break;
	case 1:
		describe(bench, input, TABLE_AT, 63);
		break;
	case 2:
		avail->ring[avail->idx & mask] = (uint16_t)take(input, 1);
		avail->idx++;
		break;
	case 3:
		avail->idx = (uint16_t)(avail->idx + take(input, 2));
		break;
	case 4:
		place = take(input, 2) % (LOW - 8);
		*(volatile uint8_t *)(bench->low + place) = (uint8_t)take(input, 1);
		break;
	case 5:
		push(bench, (uint16_t)take(input, 1));
		break;
	case 6:
		(void)pv_virtqueue_enable_kicks(bench->queue);
		break;
	case 7:
		pv_virtqueue_disable_kicks(bench->queue);
		break;
	default:
		pop(bench);
	}
	REQUIRE(bench->in_flight == pv_virtqueue_in_flight(bench->queue));
	REQUIRE(bench->in_flight <= bench->config.size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
