/* A fuzz target: the input is what is written to and read from the rings of bytes behind ports and
 * the serial port, and operations under a limit. Every fault that a sanitizer can see, a byte that
 * is lost, made up or out of order, and more operations than the limit allows ends the run.
 *
 *     make fuzz TARGET=rings
 *
 * The first byte chooses what it is; then come instructions, a byte and what it takes. */
#include <errno.h>

#include "console/ring_internal.h"
#include "fuzz/input.h"
#include "ringbuf.h"
#include "throttle_internal.h"

enum { ROOM = 256 };

/* Bytes are their numbers: `first` is that of the oldest. */
struct bytes {
	uint32_t first, end;
};

static void try_ringbuf(struct input *input)
{
	uint32_t size = 2u << take(input, 1) % 7;
	uint8_t data[ROOM];
	struct pv_ringbuf *ring;
	struct bytes held = {0, 0};

	REQUIRE(pv_ringbuf_new(size, &ring) == 0);
	while (input->size > 0) {
		uint8_t code = (uint8_t)take(input, 1);
		uint32_t count = (uint32_t)take(input, 1);

		if (code & 1) {
			for (uint32_t i = 0; i < count; i++)
				data[i] = (uint8_t)(held.end + i);
			pv_ringbuf_write(ring, data, count);
			held.end += count;
			if (held.end - held.first > size)
				held.first = held.end - size;
		} else {
			uint32_t there = held.end - held.first, got = pv_ringbuf_read(ring, data, count);

			REQUIRE(got == (count < there ? count : there));
			for (uint32_t i = 0; i < got; i++)
				REQUIRE(data[i] == (uint8_t)(held.first + i));
			held.first += got;
		}
	}
	pv_ringbuf_free(ring);
}

static void check_ring(const struct pv_ring *ring, const struct bytes *held, uint32_t size)
{
	uint32_t used = held->end - held->first, count;
	const uint8_t *span = pv_ring_span(ring, &count);
	uint8_t copy[ROOM];

	REQUIRE(pv_ring_used(ring) == used && pv_ring_room(ring) == size - used);
	REQUIRE(count <= used && (count > 0) == (used > 0));
	for (uint32_t i = 0; i < count; i++)
		REQUIRE(span[i] == (uint8_t)(held->first + i));
	REQUIRE(pv_ring_copy(ring, copy, sizeof(copy)) == used);
	for (uint32_t i = 0; i < used; i++)
		REQUIRE(copy[i] == (uint8_t)(held->first + i));
}

static void try_ring(struct input *input)
{
	uint32_t size = 1u << take(input, 1) % 7;
	struct bytes held = {0, 0};
	struct pv_ring *ring;

	REQUIRE(pv_ring_new(size, &ring) == 0);
	while (input->size > 0) {
		uint8_t code = (uint8_t)take(input, 1);
		uint32_t used = held.end - held.first, count = code / 4;

		if (code % 4 < 2) {
			for (uint32_t i = 0; i < count; i++) {
				int result = pv_ring_put(ring, (uint8_t)held.end);

				REQUIRE(result == (held.end - held.first < size ? 0 : -ENOSPC));
				held.end += result == 0;
			}
		} else if (code % 4 == 2) {
			int byte = pv_ring_peek(ring, count);

			REQUIRE(byte == (count < used ? (int)(uint8_t)(held.first + count) : -EAGAIN));
		} else {
			count = count < used ? count : used;
			pv_ring_drop(ring, count);
			held.first += count;
		}
		check_ring(ring, &held, size);
	}
	pv_ring_free(ring);
}

/* No more in any time than what a tenth of a second brings, and the rate. */
static void try_throttle(struct input *input)
{
	uint64_t rate = 1 + take(input, 3) % 1000000, now = 1, taken = 0, wait;
	struct pv_throttle throttle;

	pv_throttle_init(&throttle, rate);
	while (input->size > 0) {
		now += take(input, 4);
		wait = pv_throttle_take(&throttle, now);
		if (wait > 0) {
			/* When it says so there is one, and not a moment earlier. */
			REQUIRE(pv_throttle_take(&throttle, now + wait - 1) == 1);
			now += wait;
			REQUIRE(pv_throttle_take(&throttle, now) == 0);
		}
		taken++;
		REQUIRE(taken <= now / (UINT64_C(1000000000) / rate) + rate / 10 + 1);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const TRY[])(struct input *) = {try_ringbuf, try_ring, try_throttle};
	struct input input = {data, size};

	TRY[take(&input, 1) % 3](&input);
	return 0;
}
