/* A fuzz target: the input is a driver that keeps no rule, on two queues of a slot that nothing is
 * behind, a disk's or a file system's. Every fault that a sanitizer can see, an endless loop, and a
 * request that is not answered at once ends the run.
 *
 *     make fuzz TARGET=vacant
 *
 * The first byte chooses the kind; then come instructions, a byte and what it takes. */
#include "fuzz/driver.h"
#include "virtio/vacant.c"

enum { QUEUES = 2, TEXT_AT = 0x4000, ROOM_AT = 0x5000 };

struct bench {
	struct driver driver;
	struct pv_vacant *vacant;
	uint16_t head;
};

static struct bench *bench_new(struct input *input)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	uint8_t choice = (uint8_t)take(input, 1);

	REQUIRE(bench);
	driver_init(&bench->driver, choice & 1);
	bench->vacant = calloc(1, sizeof(*bench->vacant));
	REQUIRE(bench->vacant);
	bench->vacant->kind = choice & 2 ? PV_VACANT_FS : PV_VACANT_BLOCK;
	bench->vacant->irq = bench->driver.irq;
	bench->vacant->count = QUEUES;
	for (unsigned i = 0; i < QUEUES; i++)
		bench->vacant->queues[i] = make_queue(&bench->driver, i);
	return bench;
}

static void bench_free(struct bench *bench)
{
	driver_destroy(&bench->driver);
	free(bench->vacant);
	free(bench);
}

/* A request that means well, that the rest is reached. */
static void send_request(struct bench *bench, struct input *input, unsigned queue)
{
	struct pv_desc descs[CHAIN_DESCS] = {{.address = TEXT_AT}};
	uint8_t choice = (uint8_t)take(input, 1);
	unsigned count = 1 + choice % 4;

	descs[0].length = (uint32_t)take(input, 1);
	for (unsigned i = 1; i < count; i++) {
		uint32_t length = (uint32_t)take(input, 1);

		descs[i] = (struct pv_desc){ROOM_AT, choice & 0x80 ? length * 16 : length,
		                            PV_DESC_WRITE, 0};
	}
	offer_chain(&bench->driver, queue, bench->head++ % SIZE, descs, count);
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);
	unsigned what = code % 8, queue = code / 8 % QUEUES;

	if (what < 4)
		drive(&bench->driver, input, what, queue);
	else if (what < 6)
		send_request(bench, input, queue);
	else
		(void)serve(bench->vacant, bench->driver.rings[queue]);
	if (!bench->vacant->broken)
		for (unsigned i = 0; i < QUEUES; i++)
			REQUIRE(pv_virtqueue_in_flight(bench->driver.rings[i]) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0 && !bench->vacant->broken)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
