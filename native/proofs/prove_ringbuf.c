/* The ring buffer behind a port: of 2, 4 or 8 bytes, at each place of it and of the counters' wrap,
 * with 0, 2, to 8 bytes held, and 0, 5, to 20 written or read. */
#include "proofs/model.h"

#include "ringbuf.c"

#define MOST 8
#define COUNT 20

static uint8_t bytes[MOST], data[COUNT];
static struct pv_ringbuf ring;

static void any_ring(unsigned order, unsigned offset, unsigned held)
{
	ring.size = 1u << order;
	ring.data = &bytes[MOST - ring.size];
	ring.taken = UINT32_MAX - offset;
	ring.written = ring.taken + (held < ring.size ? held : ring.size);
}

int main(void)
{
	unsigned order = 1 + pv_each(2), is_read = pv_each(1), count = 5 * pv_each(4), held, done;

	PV_UNKNOWN(bytes);
	PV_UNKNOWN(data);
	any_ring(order, pv_each(7), 2 * pv_each(4));
	held = ring.written - ring.taken;
	if (is_read) {
		done = pv_ringbuf_read(&ring, &data[COUNT - count], count);
		/*@ assert what_there_is: done == (count < held ? count : held); */
	} else {
		pv_ringbuf_write(&ring, &data[COUNT - count], count);
		done = ring.written - ring.taken;
		/*@ assert the_newest: done == (held + count < ring.size ? held + count : ring.size); */
	}
	return 0;
}
