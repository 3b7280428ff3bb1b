/* A fuzz target: the input is a driver that keeps no rule, on the queue of an entropy device, and a
 * source that has bytes when it likes. Every fault that a sanitizer can see, an endless loop, a
 * buffer that is held between turns, answered by nothing or by more than a request is to have, and
 * a byte that is lost or made up end the run.
 *
 *     make fuzz TARGET=rng
 *
 * The first byte chooses features and a limit; then come instructions, a byte and what it takes. */
#include <fcntl.h>
#include <unistd.h>

#include "fuzz/driver.h"
#include "rng/internal.h"

enum { QUEUE };

struct bench {
	struct driver driver;
	struct pv_rng *rng;
	int source, feed;
	uint64_t fed, now;
};

static struct bench *bench_new(struct input *input)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	uint8_t choice = (uint8_t)take(input, 1);
	struct pv_queue queue;
	int ends[2];

	REQUIRE(bench);
	driver_init(&bench->driver, choice & 1);
	REQUIRE(pipe2(ends, O_NONBLOCK) == 0);
	bench->source = ends[0];
	bench->feed = ends[1];
	bench->now = 1;
	REQUIRE(pv_rng_new(bench->source, choice & 2 ? 64 + choice * UINT64_C(100) : 0,
	                   &bench->rng) == 0);
	queue = make_queue(&bench->driver, QUEUE);
	pv_rng_begin(bench->rng, &queue, bench->driver.irq);
	return bench;
}

static void bench_free(struct bench *bench)
{
	pv_rng_free(bench->rng);
	driver_destroy(&bench->driver);
	close(bench->source);
	if (bench->feed >= 0)
		close(bench->feed);
	free(bench);
}

static void offer_buffer(struct bench *bench, struct input *input)
{
	struct pv_desc desc = {.address = TABLE_AT, .length = (uint32_t)take(input, 2) & 0x1fff};

	desc.flags = PV_DESC_WRITE;
	memcpy(bench->driver.ram, &desc, sizeof(desc));
	offer(&bench->driver, QUEUE, 0);
}

static void feed(struct bench *bench, struct input *input)
{
	static const uint8_t WORDS[4096];
	ssize_t bytes;

	if (bench->feed < 0)
		return;
	bytes = write(bench->feed, WORDS, take(input, 2) % sizeof(WORDS));
	bench->fed += bytes > 0 ? (uint64_t)bytes : 0;
}

static void check(const struct bench *bench)
{
	uint64_t bytes = atomic_load(&bench->rng->counters[PV_RNG_BYTES]);
	uint64_t requests = atomic_load(&bench->rng->counters[PV_RNG_REQUESTS]);

	REQUIRE(bytes <= bench->fed);
	REQUIRE(bytes >= requests && bytes <= requests * bench->rng->piece);
	if (bench->rng->wait != PV_RNG_END)
		REQUIRE(pv_virtqueue_in_flight(bench->driver.rings[QUEUE]) == 0);
}

static void instruct(struct bench *bench, struct input *input)
{
	unsigned what = (unsigned)(take(input, 1) % 10);

	switch (what) {
	case 0:
	case 1:
	case 2:
	case 3:
		drive(&bench->driver, input, what, QUEUE);
		break;
	case 4:
	case 5:
		offer_buffer(bench, input);
		break;
	case 6:
		feed(bench, input);
		break;
	case 7:
		if (take(input, 1) == 0 && bench->feed >= 0) {
			close(bench->feed);
			bench->feed = -1;
		}
		break;
	default:
		bench->now += take(input, 4);
		pv_rng_serve(bench->rng, bench->now);
	}
	check(bench);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0 && bench->rng->wait != PV_RNG_END)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
