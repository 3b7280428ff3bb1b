/* The walk along any chain of descriptors, in queues of 1 and 4 and indirect tables of 1 and 5, where
 * a chain has 3 at most (prove.toml makes PV_CHAIN_MAX that): within its tables, ended, and no more
 * segments than there is room for. Tables end where their memory ends. */
#include "proofs/model.h"

#include "virtio/chain.c"

#define MOST 5

static struct pv_desc table[MOST], indirect[MOST];
static unsigned nested;
static struct pv_virtqueue queue;
static struct pv_chain chain;

int pv_virtqueue_fail(struct pv_virtqueue *broken, const char *format, ...)
{
	return -1;
}

/* An indirect table is of `nested` descriptors, or not in guest memory. */
void *pv_memory_at(const struct pv_memory *memory, uint64_t address, uint64_t length)
{
	if (PV_ANY_BOOL())
		return NULL;
	return length == nested * sizeof(struct pv_desc) ? &indirect[MOST - nested] : NULL;
}

static void any_queue(unsigned size, unsigned with_indirect, unsigned descriptors)
{
	PV_UNKNOWN(table);
	PV_UNKNOWN(indirect);
	nested = descriptors;
	queue.size = (uint16_t)size;
	queue.indirect = (uint8_t)with_indirect;
	queue.desc = &table[MOST - size];
}

int main(void)
{
	unsigned size = 1u << (2 * pv_each(1)), with_indirect = pv_each(1), descriptors = 1 + 4 * pv_each(1);
	int result;

	any_queue(size, with_indirect, descriptors);
	result = pv_virtqueue_walk(&queue, (uint16_t)PV_ANY(0, size - 1), &chain);
	return result;
}
