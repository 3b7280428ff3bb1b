/* Buffers of a driver, as pv_virtqueue_pop hands them out. Each segment ends where its memory ends,
 * and what is in it is unknown. */
#ifndef PV_PROOFS_CHAIN_MODEL_H
#define PV_PROOFS_CHAIN_MODEL_H

#include "proofs/model.h"
#include "virtio/virtqueue.h"

#define PV_SEGMENT_MAX 64

static uint8_t pv_segments[4][PV_SEGMENT_MAX];

static void pv_add_segment(struct pv_chain *chain, uint32_t length)
{
	unsigned place = (unsigned)chain->readable + chain->writable;

	chain->iov[place].iov_base = &pv_segments[place][PV_SEGMENT_MAX - length];
	chain->iov[place].iov_len = length;
}

static void pv_add_readable(struct pv_chain *chain, uint32_t length)
{
	pv_add_segment(chain, length);
	chain->readable++;
	chain->readable_bytes += length;
}

/* Behind all that can be read. */
static void pv_add_writable(struct pv_chain *chain, uint32_t length)
{
	pv_add_segment(chain, length);
	chain->writable++;
	chain->writable_bytes += length;
}

/* Without segments yet. */
static void pv_begin_chain(struct pv_chain *chain)
{
	PV_UNKNOWN(pv_segments);
	chain->head = (uint16_t)PV_ANY(0, PV_VIRTQUEUE_SIZE_MAX - 1);
	chain->readable = chain->writable = 0;
	chain->readable_bytes = chain->writable_bytes = 0;
}

#endif
