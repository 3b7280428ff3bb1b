#include "block/fault_internal.h"

#include <errno.h>
#include <linux/virtio_blk.h>

static uint32_t op_of(uint32_t type)
{
	switch (type) {
	case VIRTIO_BLK_T_IN:
		return PV_FAULT_READ;
	case VIRTIO_BLK_T_OUT:
		return PV_FAULT_WRITE;
	case VIRTIO_BLK_T_FLUSH:
		return PV_FAULT_FLUSH;
	case VIRTIO_BLK_T_DISCARD:
		return PV_FAULT_DISCARD;
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return PV_FAULT_ZEROES;
	default:
		return 0;
	}
}

/* Keep the order of requests with the same time. */
static void insert(struct pv_block_request **list, struct pv_block_request *r, uint64_t time)
{
	while (*list && (*list)->time_ns <= time)
		list = &(*list)->next;
	r->time_ns = time;
	r->next = *list;
	*list = r;
}

/* The byte of the data at `offset`, which is below its length. */
static uint8_t *byte_at(const struct pv_block_request *r, uint64_t offset)
{
	const struct iovec *iov = r->at;

	for (; offset >= iov->iov_len; iov++)
		offset -= iov->iov_len;
	return (uint8_t *)iov->iov_base + offset;
}

static void set_failed(struct pv_block_request *r, int error)
{
	if (error == EOPNOTSUPP) {
		r->status = VIRTIO_BLK_S_UNSUPP;
	} else {
		r->status = VIRTIO_BLK_S_IOERR;
		r->error = error;
	}
}

bool pv_block_faults_take(struct pv_block_faults *f, struct pv_block_request *r, uint64_t now)
{
	struct pv_fault_subject subject = {op_of(r->type), r->offset / PV_SECTOR, r->length};
	struct pv_fault_verdict verdict;

	if ((f->armed & subject.op) == 0)
		return false;
	verdict = pv_faults_judge(f->rules, &subject);
	if (verdict.error)
		set_failed(r, verdict.error);
	if (verdict.corrupts && r->type == VIRTIO_BLK_T_IN)
		r->corrupt = byte_at(r, verdict.offset);
	r->lost_by = verdict.dropped_by;
	if (verdict.dropped_by)
		insert(&f->lost, r, now);
	else if (verdict.delay_ns)
		insert(&f->late, r, now + verdict.delay_ns);
	return verdict.dropped_by || verdict.delay_ns;
}

/* What is not lost any more is late, and its time has come. */
static void find_lost(struct pv_block_faults *f, bool stopping)
{
	struct pv_block_request **place = &f->lost;

	while (*place) {
		struct pv_block_request *r = *place;
		bool is_held = pv_faults_has(f->rules, r->lost_by);

		if (is_held && !stopping) {
			place = &r->next;
			continue;
		}
		*place = r->next;
		if (is_held)
			r->status = VIRTIO_BLK_S_IOERR;
		insert(&f->late, r, 0);
	}
}

struct pv_block_request *pv_block_faults_release(struct pv_block_faults *f, uint64_t now,
                                                 bool stopping)
{
	uint32_t generation = atomic_load(&f->rules->generation);
	struct pv_block_request *r;

	if (f->lost && (stopping || f->generation != generation))
		find_lost(f, stopping);
	f->generation = generation;
	r = f->late;
	if (!r || (r->time_ns > now && !stopping))
		return NULL;
	f->late = r->next;
	return r;
}

uint64_t pv_block_faults_wait(const struct pv_block_faults *f, uint64_t now)
{
	if (!f->late)
		return PV_FOREVER;
	return f->late->time_ns > now ? f->late->time_ns - now : 0;
}
