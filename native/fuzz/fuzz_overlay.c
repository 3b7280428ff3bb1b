/* A fuzz target: the input is what a guest writes to a disk with layers over its image, and what
 * somebody changes in the file of one. Every fault that a sanitizer can see, a sector that is found
 * in another layer than the newest it was written to, and a length beyond the disk ends the run.
 *
 *     make fuzz TARGET=overlay
 *
 * The first byte chooses the size; then come instructions, a byte and what it takes. */
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/overlay_internal.h"
#include "fuzz/input.h"

enum { SECTOR = 512, SECTORS = 32770, LAYERS = 4 };

struct layer {
	struct pv_overlay *overlay;
	int fd;
};

struct bench {
	uint64_t sectors;
	struct layer layers[LAYERS]; /* the oldest first */
	unsigned count;
	bool is_wild;         /* a file has been changed */
	uint8_t home[SECTORS]; /* the layer that has a sector, from 1 on; 0: the image */
};

static int make_file(void)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	REQUIRE(fd >= 0);
	return fd;
}

static const struct pv_overlay *newest(const struct bench *bench)
{
	return bench->layers[bench->count - 1].overlay;
}

static void add_layer(struct bench *bench)
{
	struct layer *layer = &bench->layers[bench->count];

	layer->fd = make_file();
	REQUIRE(pv_overlay_new(layer->fd, bench->sectors, bench->count ? newest(bench) : NULL,
	                       &layer->overlay) == 0);
	bench->count++;
}

static struct bench *bench_new(struct input *input)
{
	static const uint16_t SIZES[] = {1, 63, 64, 65, 200, 4096, 32768, SECTORS};
	struct bench *bench = calloc(1, sizeof(*bench));

	REQUIRE(bench);
	bench->sectors = SIZES[take(input, 1) % 8];
	add_layer(bench);
	return bench;
}

static void bench_free(struct bench *bench)
{
	while (bench->count-- > 0) {
		pv_overlay_free(bench->layers[bench->count].overlay);
		close(bench->layers[bench->count].fd);
	}
	free(bench);
}

/* Most places are near the ends of words and pages of the map. */
static uint64_t take_sector(const struct bench *bench, struct input *input)
{
	static const uint16_t NEAR[] = {0, 64, 128, 4096, 32704, 32768, 0xffff};
	uint8_t choice = (uint8_t)take(input, 1);
	uint64_t at = choice < 0xe0 ? NEAR[choice % 7] + (uint64_t)(choice / 7) : take(input, 2);

	return at % bench->sectors;
}

/* Most writes are of a few sectors, that layers lie between each other's. */
static void guest_writes(struct bench *bench, struct input *input)
{
	uint64_t at = take_sector(bench, input), choice = take(input, 1);
	uint64_t end = at + 1 + (choice < 0xe0 ? choice % 32 : take(input, 2));

	end = end < bench->sectors ? end : bench->sectors;
	pv_overlay_mark(bench->layers[bench->count - 1].overlay, at * SECTOR, end * SECTOR);
	memset(bench->home + at, (int)bench->count, end - at);
}

static const struct pv_overlay *layer_of(const struct bench *bench, uint64_t sector)
{
	unsigned home = bench->home[sector];

	return home ? bench->layers[home - 1].overlay : NULL;
}

/* Look for a byte, from a layer on that stands for all. */
static void look(const struct bench *bench, struct input *input)
{
	uint64_t at = take_sector(bench, input), offset = at * SECTOR + take(input, 1) % SECTOR;
	uint64_t length = 1 + take(input, 2) * 64, room = bench->sectors * SECTOR - offset, asked;
	const struct pv_overlay *found;

	length = asked = length < room ? length : room;
	found = pv_overlay_find(newest(bench), offset, &length);
	REQUIRE(length > 0 && length <= asked);
	if (bench->is_wild)
		return;
	for (; at * SECTOR < offset + length; at++)
		REQUIRE(layer_of(bench, at) == found);
	if (length < asked)
		REQUIRE((offset + length) % SECTOR == 0 && layer_of(bench, at) != found);
}

/* Complete the newest layer's file, read it again, and go on with another over it. */
static void freeze(struct bench *bench, struct input *input)
{
	struct layer *layer = &bench->layers[bench->count - 1];
	const struct pv_overlay *below = layer->overlay->below;
	uint64_t end = bench->sectors * SECTOR + layer->overlay->map_bytes + 64;
	unsigned choice = (unsigned)take(input, 1), changes = choice < 0xe0 ? 0 : choice % 4;
	int result;

	if (bench->count == LAYERS)
		return;
	REQUIRE(pv_overlay_freeze(layer->overlay) == 0);
	pv_overlay_free(layer->overlay);
	for (unsigned i = 0; i < changes; i++) {
		/* In the map, or what is behind it. */
		uint64_t at = end - 1 - take(input, 2) % (end - bench->sectors * SECTOR);

		REQUIRE(pwrite(layer->fd, &(uint8_t){(uint8_t)take(input, 1)}, 1, (off_t)at) == 1);
		bench->is_wild = true;
	}
	result = pv_overlay_thaw(layer->fd, bench->sectors, below, &layer->overlay);
	if (result < 0) {
		REQUIRE(result == -EINVAL && bench->is_wild);
		close(layer->fd);
		bench->count--;
		bench->is_wild = true;
	}
	add_layer(bench);
}

/* Make one layer of all, which stands for them. */
static void flatten(struct bench *bench)
{
	static const uint8_t MARK[PV_OVERLAY_MARK] = "fuzz";
	uint64_t size = bench->sectors * SECTOR, written = 0;
	struct layer flat = {NULL, make_file()};

	REQUIRE(ftruncate(flat.fd, (off_t)size) == 0);
	REQUIRE(pv_overlay_copy(newest(bench), flat.fd, 0, UINT64_MAX, &written) == 0);
	REQUIRE(pv_overlay_complete(newest(bench), flat.fd, MARK) == 0);
	REQUIRE(pv_overlay_thaw(flat.fd, bench->sectors, NULL, &flat.overlay) == 0);
	for (uint64_t at = 0; at < bench->sectors && !bench->is_wild; at++) {
		uint64_t length = SECTOR;

		REQUIRE((pv_overlay_find(flat.overlay, at * SECTOR, &length) != NULL) ==
		        (bench->home[at] != 0));
	}
	pv_overlay_free(flat.overlay);
	close(flat.fd);
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);

	switch (code % 8) {
	case 0:
		freeze(bench, input);
		break;
	case 1:
		if (code == 1)
			flatten(bench);
		break;
	case 2:
	case 3:
	case 4:
		guest_writes(bench, input);
		break;
	default:
		look(bench, input);
	}
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
