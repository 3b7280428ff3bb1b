/* What serves one queue of a block device: from the ring to the engine and back. */
#include <linux/virtio_blk.h>
#include <stdlib.h>

#include "block/internal.h"
#include "virtio/irq.h"

#define NS_PER_S UINT64_C(1000000000)
/* What a queue takes from its ring before others have their turn. */
#define BATCH 128
#define BATCH_BYTES (16 * 1024 * 1024)
#define HERE_MAX 64 /* operations that a request has its queue's thread carry out in a row */

static void count(_Atomic uint64_t *counter, uint64_t more)
{
	uint64_t before = atomic_load_explicit(counter, memory_order_relaxed);

	atomic_store_explicit(counter, before + more, memory_order_relaxed);
}

static void count_in_flight(struct pv_block_worker *w, int more)
{
	uint32_t before = atomic_load_explicit(&w->in_flight, memory_order_relaxed);

	atomic_store_explicit(&w->in_flight, before + (uint32_t)more, memory_order_release);
}

static void count_request(struct pv_block_counters *counters, const struct pv_block_request *r)
{
	static const uint32_t TYPES[] = {VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH,
	                                 VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES};
	unsigned kind = 0;

	while (kind < sizeof(TYPES) / sizeof(TYPES[0]) && TYPES[kind] != r->type)
		kind++;
	count(&counters->requests[kind], 1);
	if (r->status != VIRTIO_BLK_S_OK)
		count(&counters->errors, 1);
	else if (r->type == VIRTIO_BLK_T_IN)
		count(&counters->bytes_read, r->length);
	else if (r->type == VIRTIO_BLK_T_OUT)
		count(&counters->bytes_written, r->length);
}

/* Keep the host's failure for the monitor, not more often than it wants to hear of them. */
static void note_error(struct pv_block *b, const struct pv_block_request *r)
{
	uint64_t before = atomic_load(&b->noted_ns), now = pv_now_ns();

	if ((before && now - before < NS_PER_S) ||
	    !atomic_compare_exchange_strong(&b->noted_ns, &before, now))
		return;
	atomic_store(&b->noted, (uint64_t)r->type << 32 | (uint32_t)r->error);
	pv_virtio_irq_news(b->irq);
}

static void answer(struct pv_block_worker *w, struct pv_block_request *r)
{
	if (r->error)
		note_error(w->block, r);
	if (r->corrupt && r->status == VIRTIO_BLK_S_OK)
		*r->corrupt ^= UINT8_MAX;
	*r->answer = r->status;
	count_request(w->counters, r);
	pv_virtqueue_push(w->ring, r->head, r->writable);
	w->pushed = true;
	count_in_flight(w, -1);
}

/* Of what was given up the guest's memory sees nothing more: it may serve something else. */
static void drop(struct pv_block_worker *w, struct pv_block_request *r)
{
	free(r->bounce);
	count_in_flight(w, -1);
}

/* Carry the operation out, or have the engine do so; then false, and it is the engine's. */
static bool carry_out(struct pv_block_worker *w, struct pv_block_request *r, bool here)
{
	int64_t result = here ? pv_io_run(&r->io)
	                      : w->member.engine->ops->start(w->member.engine, &r->io);

	if (!here && result == 0)
		return false;
	r->io.result = result;
	return true;
}

/* Begin the next operation of a request, or answer it. */
static void proceed(struct pv_block_worker *w, struct pv_block_request *r)
{
	if (pv_block_phase(w->block) == PV_BLOCK_GIVEN_UP) {
		drop(w, r);
		return;
	}
	for (unsigned here = 0; pv_block_next(&w->block->file, r); here++) {
		if (!carry_out(w, r, r->here && here < HERE_MAX))
			return;
		pv_block_absorb(&w->block->file, r);
	}
	answer(w, r);
}

static void begin(struct pv_block_worker *w, struct pv_block_request *r)
{
	r->status = pv_block_check(&w->block->limits, r);
	if (r->status == VIRTIO_BLK_S_OK)
		pv_block_prepare(&w->block->file, r);
	proceed(w, r);
}

static void break_device(struct pv_block_worker *w, const char *why)
{
	if (!atomic_exchange(&w->block->broken, true))
		pv_virtio_irq_broken(w->block->irq, why);
}

/* Begin a request, or hold it until there is a token; without a limit, no clock is read. At the end
 * nothing waits. */
static void admit(struct pv_block_worker *w, struct pv_block_request *r)
{
	struct pv_block *b = w->block;
	bool again = w->held != NULL;

	w->held_ns = 0;
	if (b->throttle.rate > 0 && pv_block_phase(b) == PV_BLOCK_SERVING)
		w->held_ns = pv_throttle_take(&b->throttle, pv_now_ns());
	w->held = w->held_ns ? r : NULL;
	if (!w->held)
		begin(w, r);
	else if (!again)
		count(&w->counters->throttled, 1);
}

/* Go on with a request that the faults have looked at. */
static void resume(struct pv_block_worker *w, struct pv_block_request *r)
{
	if (r->status == VIRTIO_BLK_S_OK)
		admit(w, r);
	else
		proceed(w, r);
}

/* Take the next request from the ring; false: there is none to be taken. In a turn that began
 * before an order, that comes into force with the next one. */
static bool take(struct pv_block_worker *w)
{
	struct pv_block_request *r;
	const char *why;
	int result;

	if (atomic_load(&w->block->broken))
		return false;
	result = pv_virtqueue_pop(w->ring, &w->chain);
	if (result < 0)
		break_device(w, pv_virtqueue_error(w->ring));
	if (result <= 0)
		return false;
	r = &w->requests[w->chain.head];
	why = pv_block_parse(&w->chain, r);
	if (why) {
		break_device(w, why);
		return false;
	}
	r->io.owner = &w->member;
	r->io.device = w->member.device;
	count_in_flight(w, 1);
	w->batch++;
	w->batch_bytes += w->chain.readable_bytes + w->chain.writable_bytes;
	if (!w->faults.armed)
		admit(w, r);
	else if (!pv_block_faults_take(&w->faults, r, pv_now_ns()))
		resume(w, r);
	return true;
}

static void publish(struct pv_block_worker *w)
{
	if (!w->pushed || pv_block_phase(w->block) == PV_BLOCK_GIVEN_UP)
		return;
	w->pushed = false;
	pv_virtqueue_publish(w->ring);
	if (pv_virtqueue_needs_notify(w->ring)) {
		count(&w->counters->interrupts, 1);
		pv_virtio_irq_used(w->block->irq);
	} else {
		count(&w->counters->suppressed, 1);
	}
}

static void complete(struct pv_member *member, struct pv_io *io)
{
	struct pv_block_request *r = (struct pv_block_request *)io;
	struct pv_block_worker *w = (struct pv_block_worker *)member;

	enum pv_block_phase phase = pv_block_phase(w->block);

	if (phase != PV_BLOCK_GIVEN_UP)
		pv_block_absorb(&w->block->file, r);
	/* Who waits for the end need not wait for all of a large one. */
	if (phase == PV_BLOCK_STOPPING)
		pv_block_cut(r);
	proceed(w, r);
}

/* Let requests begin that a fault has kept, and see whether it is to keep others. */
static void look_at_faults(struct pv_block_worker *w, bool ending)
{
	struct pv_block_request *r;

	w->faults.armed = pv_faults_armed(w->faults.rules);
	if (w->faults.armed & PV_FAULT_BROKEN)
		atomic_store(&w->block->broken, true);
	while (!w->held && (w->faults.late || w->faults.lost) &&
	       (r = pv_block_faults_release(&w->faults, pv_now_ns(), ending)))
		resume(w, r);
}

/* How long to wait, with nothing to do. */
static uint64_t patience(const struct pv_block_worker *w)
{
	uint64_t late = w->faults.late ? pv_block_faults_wait(&w->faults, pv_now_ns()) : PV_FOREVER;

	return w->held && w->held_ns < late ? w->held_ns : late;
}

/* Take requests, up to the budget; true: there may be more. */
static bool take_batch(struct pv_block_worker *w)
{
	w->batch = 0;
	w->batch_bytes = 0;
	while (!w->held) {
		if (w->batch == BATCH || w->batch_bytes >= BATCH_BYTES)
			return true;
		if (!take(w))
			return false;
	}
	return false;
}

/* Tell who waits that the order is obeyed, and whether anything is in flight still. */
static void obey(struct pv_block_worker *w, uint32_t order)
{
	struct pv_block *b = w->block;
	bool is_new = order != atomic_load_explicit(&w->obeyed, memory_order_relaxed);

	if (is_new)
		atomic_store(&w->obeyed, order);
	if (order % PV_BLOCK_PHASES == PV_BLOCK_SERVING || (w->in_flight > 0 && !is_new))
		return;
	pthread_mutex_lock(&b->lock);
	pthread_cond_broadcast(&b->quiet);
	pthread_mutex_unlock(&b->lock);
}

/* What was completed is published before anything new is begun. */
static uint64_t serve(struct pv_member *member)
{
	struct pv_block_worker *w = (struct pv_block_worker *)member;
	uint32_t order = atomic_load(&w->block->order);
	enum pv_block_phase phase = (enum pv_block_phase)(order % PV_BLOCK_PHASES);
	bool more = false;

	publish(w);
	pv_virtqueue_disable_kicks(w->ring);
	if (w->held)
		admit(w, w->held);
	look_at_faults(w, phase != PV_BLOCK_SERVING);
	if (phase == PV_BLOCK_SERVING)
		more = take_batch(w);
	publish(w);
	obey(w, order);
	if (phase >= PV_BLOCK_STOPPING && w->in_flight == 0)
		return PV_SERVE_END;
	/* Without kicks while a request is held or nothing is taken any more. */
	if (w->held || phase != PV_BLOCK_SERVING || atomic_load(&w->block->broken))
		return patience(w);
	return more || pv_virtqueue_enable_kicks(w->ring) ? 0 : patience(w);
}

const struct pv_member_ops PV_BLOCK_OPS = {.serve = serve, .complete = complete};
