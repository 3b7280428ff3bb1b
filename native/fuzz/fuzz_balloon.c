/* A fuzz target: the input is a driver that keeps no rule, on the four queues of a balloon device.
 * Every fault that a sanitizer can see, an endless loop, a buffer that is held between turns, and
 * memory beyond the guest's that is given back end the run.
 *
 *     make fuzz TARGET=balloon
 *
 * The first byte chooses the features; then come instructions, a byte and what it takes. */
#include "balloon/internal.h"
#include "fuzz/driver.h"

enum { LIST_AT = 0x5800, STEP = PV_BALLOON_QUEUES };

struct bench {
	struct driver driver;
	struct pv_balloon *balloon;
	uint64_t now;
};

static struct bench *bench_new(struct input *input)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	uint8_t choice = (uint8_t)take(input, 1);
	struct pv_balloon_activation activation = {.keep_reported = choice >> 1 & 1};

	REQUIRE(bench);
	driver_init(&bench->driver, choice & 1);
	REQUIRE(pv_balloon_new(&bench->balloon) == 0);
	activation.memory = bench->driver.memory;
	activation.irq = bench->driver.irq;
	activation.inflate = make_queue(&bench->driver, PV_BALLOON_INFLATE);
	activation.deflate = make_queue(&bench->driver, PV_BALLOON_DEFLATE);
	activation.reporting = make_queue(&bench->driver, PV_BALLOON_REPORT);
	activation.statistics = make_queue(&bench->driver, PV_BALLOON_TELL);
	pv_balloon_begin(bench->balloon, &activation);
	bench->now = 1;
	return bench;
}

static void bench_free(struct bench *bench)
{
	pv_balloon_free(bench->balloon);
	driver_destroy(&bench->driver);
	free(bench);
}

/* What a driver offers that means well, that the rest is reached. */
static void offer_buffer(struct bench *bench, struct input *input, unsigned queue)
{
	struct pv_desc desc = {.address = LIST_AT, .length = (uint32_t)take(input, 2) & 0x7fc};

	if (queue == PV_BALLOON_REPORT)
		desc = (struct pv_desc){.address = 0x1000 + (take(input, 1) << 4),
		                        .length = 0x4000,
		                        .flags = PV_DESC_WRITE};
	memcpy(bench->driver.ram + queue * QUEUE_STEP, &desc, sizeof(desc));
	offer(&bench->driver, queue, 0);
}

static void write_page(struct bench *bench, struct input *input)
{
	uint32_t page = (uint32_t)take(input, 1) % (RAM / PV_BALLOON_PAGE + 2);
	size_t place = LIST_AT + (take(input, 1) & 0x7f) * sizeof(page);

	memcpy(bench->driver.ram + place, &page, sizeof(page));
}

/* As if poll(2) told that everything has moved. */
static void serve(struct bench *bench, struct input *input)
{
	for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++)
		if (bench->balloon->queues[i].wait == PV_BALLOON_KICK)
			bench->balloon->queues[i].wait = PV_BALLOON_MORE;
	bench->now += take(input, 1);
	pv_balloon_serve(bench->balloon, bench->now);
}

static void check(const struct bench *bench)
{
	const _Atomic uint64_t *counters = bench->balloon->counters;

	REQUIRE(atomic_load(&counters[PV_BALLOON_RELEASED]) <=
	        atomic_load(&counters[PV_BALLOON_INFLATED]) +
	                atomic_load(&counters[PV_BALLOON_REPORTED]));
	REQUIRE(atomic_load(&counters[PV_BALLOON_KEPT]) == 0);
	if (!bench->balloon->broken)
		for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++)
			REQUIRE(pv_virtqueue_in_flight(bench->driver.rings[i]) == 0);
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);
	unsigned what = code % 16, queue = code / 16 % STEP;

	switch (what) {
	case 0:
	case 1:
	case 2:
	case 3:
		drive(&bench->driver, input, what, queue);
		break;
	case 4:
	case 5:
	case 6:
		write_page(bench, input);
		break;
	case 7:
	case 8:
	case 9:
		offer_buffer(bench, input, queue);
		break;
	case 10:
		pv_balloon_poll(bench->balloon, take(input, 1), 1);
		break;
	default:
		serve(bench, input);
	}
	check(bench);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0 && !bench->balloon->broken)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
