/* Copies between a buffer and segments: they stay within both, and say how much they were. Up to
 * two segments of 1, 2 or 5 bytes, and every place to begin at and every length around them. */
#include "proofs/chain_model.h"

#include "virtio/iov.c"

#define MOST 12

static struct pv_chain chain;
static uint8_t buffer[MOST];

static void add(unsigned which)
{
	static const uint32_t lengths[] = {1, 2, 5};

	if (which > 0)
		pv_add_readable(&chain, lengths[which - 1]);
}

static size_t left(size_t skip, size_t length)
{
	size_t there = chain.readable_bytes > skip ? chain.readable_bytes - skip : 0;

	return there < length ? there : length;
}

int main(void)
{
	unsigned first = pv_each(3), second = pv_each(3), which = pv_each(2);
	size_t skip = pv_each(7), length = 3 * pv_each(4), done, wanted;

	PV_UNKNOWN(buffer);
	pv_begin_chain(&chain);
	add(first);
	add(second);
	wanted = left(which == 2 ? 0 : skip, length);
	if (which == 0)
		done = pv_iov_gather(chain.iov, chain.readable, skip, &buffer[MOST - wanted], length);
	else if (which == 1)
		done = pv_iov_scatter(chain.iov, chain.readable, skip, &buffer[MOST - wanted], length);
	else
		done = pv_iov_clear(chain.iov, chain.readable, length);
	/*@ assert as_many_as_there_are: done == wanted; */
	return 0;
}
