/* A ring between two threads, of each size up to 8 bytes and at each place: its consumer, while the
 * producer may have moved on to anywhere, and the other way round. */
#define PV_SEEN(place) PV_ANEW(place)
#include "proofs/model.h"

#include "console/ring.c"

#define MOST 8

static uint64_t whole[(sizeof(struct pv_ring) + MOST + 7) / sizeof(uint64_t)];

int main(void)
{
	struct pv_ring *ring = (struct pv_ring *)whole;
	uint8_t copy[MOST], byte = 0;
	const uint8_t *span;
	uint32_t count;

	PV_UNKNOWN(whole);
	ring->mask = (1u << pv_each(3)) - 1;
	switch (pv_each(4)) {
	case 0:
		(void)pv_ring_put(ring, 0);
		break;
	case 1:
		(void)pv_ring_peek(ring, PV_ANY(0, UINT32_MAX));
		break;
	case 2:
		span = pv_ring_span(ring, &count);
		/*@ assert in_one_piece: count <= ring->mask + 1; */
		byte = count > 0 ? *span : 0;
		break;
	case 3:
		count = pv_ring_copy(ring, copy, PV_ANY(0, MOST));
		/*@ assert no_more_than_room: count <= MOST; */
		break;
	default:
		count = pv_ring_used(ring);
		/*@ assert no_more_than_size: count <= ring->mask + 1; */
		pv_ring_drop(ring, count);
	}
	return byte;
}
