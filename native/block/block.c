#include "block/block.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "block/fault_internal.h"
#include "block/iothread_internal.h"
#include "block/work_internal.h"
#include "thread_internal.h"
#include "throttle_internal.h"
#include "virtio/irq.h"

#define ALIGN_MAX 4096
#define NS_PER_S UINT64_C(1000000000)
/* What a queue takes from its ring before others have their turn. */
#define BATCH 128
#define BATCH_BYTES (16 * 1024 * 1024)

/* Each is written by one thread only, and read by any. */
struct counters {
	_Atomic uint64_t requests[6]; /* reads to others, as in struct pv_block_stats */
	_Atomic uint64_t bytes_read;
	_Atomic uint64_t bytes_written;
	_Atomic uint64_t errors;
	_Atomic uint64_t throttled;
	_Atomic uint64_t interrupts;
	_Atomic uint64_t suppressed;
};

/* What serves one queue; its thread's alone while that runs, the counters apart. */
struct worker {
	struct pv_member member; /* first, so that one is found by the other */
	struct pv_iothread *thread;
	struct pv_block *block;
	struct pv_virtqueue *ring;
	struct pv_block_request *requests; /* by head; touched as they are needed */
	struct pv_block_request *held;     /* waits for a token of the throttle */
	uint64_t held_ns;                  /* and how long, at least */
	struct pv_block_faults faults;
	_Atomic uint32_t in_flight; /* written by the thread only */
	_Atomic uint32_t obeyed;    /* the order of its last turn; the same */
	bool pushed;                /* something, since the last publish */
	uint32_t batch;             /* requests taken in this turn */
	uint64_t batch_bytes;       /* and their buffers */
	struct counters *counters;
	struct pv_chain chain;
};

/* The low bits of an order; the others number the orders. */
enum phase {
	SERVING,
	DRAINING, /* nothing new is begun */
	STOPPING, /* and with nothing in flight the threads are left */
	GIVEN_UP, /* the same, and nobody waits: what is left ends without a trace in the guest */
	PHASES,
};

struct pv_block {
	struct pv_block_file file;
	struct pv_block_limits limits;
	struct pv_throttle throttle;
	struct pv_iothread *iothread; /* or NULL */
	struct pv_virtio_irq *irq;
	struct worker *workers;
	uint32_t count;
	_Atomic uint32_t order;
	atomic_bool broken;
	pthread_mutex_t lock; /* for `quiet` */
	pthread_cond_t quiet; /* a queue has nothing in flight, after an order */
	_Atomic uint64_t noted_ns; /* when the last failure of the host's was noted */
	_Atomic uint64_t noted;    /* its errno, and above that its type; 0: it was taken */
	struct counters counters[PV_BLOCK_QUEUES];
};

static void count(_Atomic uint64_t *counter, uint64_t more)
{
	uint64_t before = atomic_load_explicit(counter, memory_order_relaxed);

	atomic_store_explicit(counter, before + more, memory_order_relaxed);
}

static void count_in_flight(struct worker *w, int more)
{
	uint32_t before = atomic_load_explicit(&w->in_flight, memory_order_relaxed);

	atomic_store_explicit(&w->in_flight, before + (uint32_t)more, memory_order_release);
}

static enum phase phase_of(const struct pv_block *b)
{
	return (enum phase)(atomic_load(&b->order) % PHASES);
}

static void count_request(struct counters *counters, const struct pv_block_request *r)
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

int pv_block_take_error(struct pv_block *b, uint32_t *type)
{
	uint64_t noted = atomic_exchange(&b->noted, 0);

	*type = (uint32_t)(noted >> 32);
	return (int)(uint32_t)noted;
}

static void answer(struct worker *w, struct pv_block_request *r)
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
static void drop(struct worker *w, struct pv_block_request *r)
{
	free(r->bounce);
	count_in_flight(w, -1);
}

/* Begin the next operation of a request, or answer it. */
static void proceed(struct worker *w, struct pv_block_request *r)
{
	if (phase_of(w->block) == GIVEN_UP) {
		drop(w, r);
		return;
	}
	while (pv_block_next(&w->block->file, r)) {
		int result = w->member.engine->ops->start(w->member.engine, &r->io);

		if (result == 0)
			return;
		r->io.result = result;
		pv_block_absorb(r);
	}
	answer(w, r);
}

static void begin(struct worker *w, struct pv_block_request *r)
{
	r->status = pv_block_check(&w->block->limits, r);
	if (r->status == VIRTIO_BLK_S_OK)
		pv_block_prepare(&w->block->file, r);
	proceed(w, r);
}

static void break_device(struct worker *w, const char *why)
{
	if (!atomic_exchange(&w->block->broken, true))
		pv_virtio_irq_broken(w->block->irq, why);
}

/* Begin a request, or hold it until there is a token. At the end nothing waits. */
static void admit(struct worker *w, struct pv_block_request *r)
{
	struct pv_block *b = w->block;
	bool again = w->held != NULL;

	w->held_ns = phase_of(b) != SERVING ? 0 : pv_throttle_take(&b->throttle, pv_now_ns());
	w->held = w->held_ns ? r : NULL;
	if (!w->held)
		begin(w, r);
	else if (!again)
		count(&w->counters->throttled, 1);
}

/* Go on with a request that the faults have looked at. */
static void resume(struct worker *w, struct pv_block_request *r)
{
	if (r->status == VIRTIO_BLK_S_OK)
		admit(w, r);
	else
		proceed(w, r);
}

/* Take the next request from the ring; false: there is none to be taken. In a turn that began
 * before an order, that comes into force with the next one. */
static bool take(struct worker *w)
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
	r->io.fd = w->block->file.fd;
	count_in_flight(w, 1);
	w->batch++;
	w->batch_bytes += w->chain.readable_bytes + w->chain.writable_bytes;
	if (!w->faults.armed)
		admit(w, r);
	else if (!pv_block_faults_take(&w->faults, r, pv_now_ns()))
		resume(w, r);
	return true;
}

static void publish(struct worker *w)
{
	if (!w->pushed || phase_of(w->block) == GIVEN_UP)
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
	struct worker *w = (struct worker *)member;

	enum phase phase = phase_of(w->block);

	if (phase != GIVEN_UP)
		pv_block_absorb(r);
	/* Who waits for the end need not wait for all of a large one. */
	if (phase == STOPPING)
		pv_block_cut(r);
	proceed(w, r);
}

/* Let requests begin that a fault has kept, and see whether it is to keep others. */
static void look_at_faults(struct worker *w, bool ending)
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
static uint64_t patience(const struct worker *w)
{
	uint64_t late = w->faults.late ? pv_block_faults_wait(&w->faults, pv_now_ns()) : PV_FOREVER;

	return w->held && w->held_ns < late ? w->held_ns : late;
}

/* Take requests, up to the budget; true: there may be more. */
static bool take_batch(struct worker *w)
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
static void obey(struct worker *w, uint32_t order)
{
	struct pv_block *b = w->block;
	bool is_new = order != atomic_load_explicit(&w->obeyed, memory_order_relaxed);

	if (is_new)
		atomic_store(&w->obeyed, order);
	if (order % PHASES == SERVING || (w->in_flight > 0 && !is_new))
		return;
	pthread_mutex_lock(&b->lock);
	pthread_cond_broadcast(&b->quiet);
	pthread_mutex_unlock(&b->lock);
}

/* What was completed is published before anything new is begun. */
static uint64_t serve(struct pv_member *member)
{
	struct worker *w = (struct worker *)member;
	uint32_t order = atomic_load(&w->block->order);
	enum phase phase = (enum phase)(order % PHASES);
	bool more = false;

	publish(w);
	pv_virtqueue_disable_kicks(w->ring);
	if (w->held)
		admit(w, w->held);
	look_at_faults(w, phase != SERVING);
	if (phase == SERVING)
		more = take_batch(w);
	publish(w);
	obey(w, order);
	if (phase >= STOPPING && w->in_flight == 0)
		return PV_SERVE_END;
	/* Without kicks while a request is held or nothing is taken any more. */
	if (w->held || phase != SERVING || atomic_load(&w->block->broken))
		return patience(w);
	return more || pv_virtqueue_enable_kicks(w->ring) ? 0 : patience(w);
}

static const struct pv_member_ops OPS = {.serve = serve, .complete = complete};

int pv_block_new(const struct pv_block_config *config, struct pv_block **out)
{
	uint32_t aligns = config->offset_align | config->memory_align;
	struct pv_block *b;

	*out = NULL;
	if (config->offset_align == 0 || config->memory_align == 0 || aligns >= 2 * ALIGN_MAX ||
	    (config->offset_align & (config->offset_align - 1)) != 0 ||
	    (config->memory_align & (config->memory_align - 1)) != 0)
		return -EINVAL;
	b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->file.fd = config->fd;
	b->file.flags = config->flags;
	b->file.offset_align = config->offset_align;
	b->file.memory_align = config->memory_align;
	b->file.cached = pv_io_is_cached(config->fd);
	memcpy(b->file.id, config->id, sizeof(b->file.id));
	pthread_mutex_init(&b->file.lock, NULL);
	pthread_mutex_init(&b->lock, NULL);
	pv_cond_init(&b->quiet);
	b->limits.sectors = config->sectors;
	b->limits.readonly = (config->flags & PV_BLOCK_READONLY) != 0;
	b->iothread = config->iothread;
	pv_throttle_init(&b->throttle, config->iops);
	*out = b;
	return 0;
}

void pv_block_free(struct pv_block *b)
{
	if (!b)
		return;
	pthread_cond_destroy(&b->quiet);
	pthread_mutex_destroy(&b->lock);
	pthread_mutex_destroy(&b->file.lock);
	free(b);
}

/* What start_worker made and nothing uses any more. */
static void drop_worker(struct worker *w)
{
	if (!w->block->iothread)
		pv_iothread_free(w->thread);
	free(w->requests);
	w->thread = NULL;
	w->requests = NULL;
}

static int start_worker(struct pv_block *b, uint32_t index, const struct pv_queue *queue)
{
	struct worker *w = &b->workers[index];
	int result;

	w->member.ops = &OPS;
	w->member.kick.fd = queue->kick_fd;
	w->block = b;
	w->ring = queue->ring;
	w->counters = &b->counters[index];
	w->faults.rules = pv_virtio_irq_faults(b->irq);
	w->thread = b->iothread;
	w->requests = calloc(PV_VIRTQUEUE_SIZE_MAX, sizeof(w->requests[0]));
	if (!w->requests)
		return -ENOMEM;
	result = w->thread ? 0 : pv_iothread_new(&w->thread);
	if (result == 0)
		result = pv_iothread_attach(
			w->thread, b->file.flags & PV_BLOCK_THREADS ? pv_pool_new : pv_uring_new,
			&w->member);
	if (result < 0)
		drop_worker(w);
	return result;
}

/* Have every queue know of it with its next turn. */
static uint32_t give_order(struct pv_block *b, enum phase phase)
{
	uint32_t order = atomic_load(&b->order);

	order = (order / PHASES + 1) * PHASES + phase;
	atomic_store(&b->order, order);
	for (uint32_t i = 0; i < b->count; i++)
		(void)eventfd_write(b->workers[i].member.kick.fd, 1);
	return order;
}

int pv_block_start(struct pv_block *b, uint64_t features, const struct pv_queue *queues,
                   uint32_t queue_count, struct pv_virtio_irq *irq)
{
	int result = 0;

	if (b->workers)
		return -EBUSY;
	if (queue_count == 0 || queue_count > PV_BLOCK_QUEUES)
		return -EINVAL;
	b->workers = calloc(queue_count, sizeof(b->workers[0]));
	if (!b->workers)
		return -ENOMEM;
	b->irq = irq;
	b->limits.features = features;
	b->file.write_through = (features >> VIRTIO_BLK_F_FLUSH & 1) == 0;
	atomic_store(&b->broken, false);
	/* Should one of them fail, nothing has begun. */
	(void)give_order(b, DRAINING);
	for (b->count = 0; b->count < queue_count && result == 0;) {
		result = start_worker(b, b->count, &queues[b->count]);
		if (result == 0)
			b->count++;
	}
	if (result < 0)
		(void)pv_block_stop(b, PV_FOREVER);
	else
		(void)give_order(b, SERVING);
	return result;
}

static bool is_quiet(const struct pv_block *b, uint32_t order)
{
	for (uint32_t i = 0; i < b->count; i++) {
		const struct worker *w = &b->workers[i];

		if (atomic_load(&w->obeyed) != order ||
		    atomic_load_explicit(&w->in_flight, memory_order_acquire))
			return false;
	}
	return true;
}

int pv_block_drain(struct pv_block *b, uint64_t timeout_ns)
{
	uint64_t deadline = pv_deadline(timeout_ns);
	uint32_t order = give_order(b, DRAINING);
	bool quiet;

	pthread_mutex_lock(&b->lock);
	while (!is_quiet(b, order) && pv_cond_wait(&b->quiet, &b->lock, deadline))
		;
	quiet = is_quiet(b, order);
	pthread_mutex_unlock(&b->lock);
	if (quiet)
		return 0;
	pv_block_resume(b);
	return -ETIMEDOUT;
}

void pv_block_resume(struct pv_block *b)
{
	(void)give_order(b, SERVING);
}

void pv_block_halt(struct pv_block *b)
{
	if (phase_of(b) < STOPPING)
		(void)give_order(b, STOPPING);
}

int pv_block_stop(struct pv_block *b, uint64_t timeout_ns)
{
	uint64_t deadline = pv_deadline(timeout_ns);
	int result = 0;

	pv_block_halt(b);
	for (uint32_t i = 0; i < b->count; i++) {
		struct worker *w = &b->workers[i];

		if (!w->thread)
			continue;
		if (pv_iothread_detach(w->thread, &w->member, deadline) < 0)
			result = -ETIMEDOUT;
		else
			drop_worker(w);
	}
	if (result < 0) {
		(void)give_order(b, GIVEN_UP);
		return result;
	}
	free(b->workers);
	b->workers = NULL;
	b->count = 0;
	return 0;
}

void pv_block_set_sectors(struct pv_block *b, uint64_t sectors)
{
	b->limits.sectors = sectors;
}

void pv_block_stats(const struct pv_block *b, struct pv_block_stats *stats)
{
	*stats = (struct pv_block_stats){0};
	for (uint32_t i = 0; i < PV_BLOCK_QUEUES; i++) {
		const struct counters *c = &b->counters[i];

		stats->reads += c->requests[0];
		stats->writes += c->requests[1];
		stats->flushes += c->requests[2];
		stats->discards += c->requests[3];
		stats->zeroes += c->requests[4];
		stats->others += c->requests[5];
		stats->bytes_read += c->bytes_read;
		stats->bytes_written += c->bytes_written;
		stats->errors += c->errors;
		stats->throttled += c->throttled;
		stats->interrupts += c->interrupts;
		stats->suppressed += c->suppressed;
	}
}
