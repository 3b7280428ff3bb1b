#include "block/block.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "block/fault_internal.h"
#include "block/iothread_internal.h"
#include "block/work_internal.h"
#include "throttle_internal.h"
#include "virtio/irq.h"

#define ALIGN_MAX 4096
#define NS_PER_S UINT64_C(1000000000)
#define LOOK_NS 100000 /* between two looks at what is in flight */
#define WHY_BYTES 160

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
	bool pushed; /* something, since the last publish */
	struct counters *counters;
	struct pv_chain chain;
};

enum phase {
	SERVING,
	DRAINING, /* nothing new is begun */
	STOPPING, /* and with nothing in flight the threads are left */
};

struct pv_block {
	struct pv_block_file file;
	struct pv_block_limits limits;
	struct pv_throttle throttle;
	struct pv_iothread *iothread; /* or NULL */
	struct pv_virtio_irq *irq;
	struct worker *workers;
	uint32_t count;
	_Atomic enum phase phase;
	atomic_bool broken;
	_Atomic uint64_t noted_ns; /* when the last failure of the host's was noted */
	_Atomic uint64_t noted;    /* its errno, and above that its type; 0: it was taken */
	char why[WHY_BYTES]; /* it broke; outlives the queue that knows */
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

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
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
	uint64_t before = atomic_load(&b->noted_ns), now = now_ns();

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

/* Begin the next operation of a request, or answer it. */
static void proceed(struct worker *w, struct pv_block_request *r)
{
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
	struct pv_block *b = w->block;

	if (atomic_exchange(&b->broken, true))
		return;
	snprintf(b->why, sizeof(b->why), "%s", why);
	pv_virtio_irq_broken(b->irq, b->why);
}

/* Begin a request, or hold it until there is a token. At the end nothing waits. */
static void admit(struct worker *w, struct pv_block_request *r)
{
	struct pv_block *b = w->block;
	bool again = w->held != NULL;

	w->held_ns = atomic_load(&b->phase) ? 0 : pv_throttle_take(&b->throttle, now_ns());
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

/* Take the next request from the ring; false: there is none to be taken. */
static bool take(struct worker *w)
{
	struct pv_block_request *r;
	const char *why;
	int result;

	if (atomic_load(&w->block->phase) || atomic_load(&w->block->broken))
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
	if (!w->faults.armed)
		admit(w, r);
	else if (!pv_block_faults_take(&w->faults, r, now_ns()))
		resume(w, r);
	return true;
}

static void publish(struct worker *w)
{
	if (!w->pushed)
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

	pv_block_absorb(r);
	proceed((struct worker *)member, r);
}

/* Let requests begin that a fault has kept, and see whether it is to keep others. */
static void look_at_faults(struct worker *w, bool ending)
{
	struct pv_block_request *r;

	w->faults.armed = pv_faults_armed(w->faults.rules);
	if (w->faults.armed & PV_FAULT_BROKEN)
		atomic_store(&w->block->broken, true);
	while (!w->held && (w->faults.late || w->faults.lost) &&
	       (r = pv_block_faults_release(&w->faults, now_ns(), ending)))
		resume(w, r);
}

/* How long to wait, with nothing to do. */
static uint64_t patience(const struct worker *w)
{
	uint64_t late = w->faults.late ? pv_block_faults_wait(&w->faults, now_ns()) : PV_IO_FOREVER;

	return w->held && w->held_ns < late ? w->held_ns : late;
}

/* What was completed is published before anything new is begun. */
static uint64_t serve(struct pv_member *member)
{
	struct worker *w = (struct worker *)member;
	enum phase phase = atomic_load(&w->block->phase);

	publish(w);
	pv_virtqueue_disable_kicks(w->ring);
	if (w->held)
		admit(w, w->held);
	look_at_faults(w, phase != SERVING);
	while (!w->held && take(w))
		;
	publish(w);
	if (phase == STOPPING && w->in_flight == 0)
		return PV_SERVE_END;
	/* Without kicks while a request is held or nothing is taken any more. */
	if (w->held || phase != SERVING || atomic_load(&w->block->broken))
		return patience(w);
	return pv_virtqueue_enable_kicks(w->ring) ? 0 : patience(w);
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
	pthread_mutex_destroy(&b->file.lock);
	free(b);
}

/* What start_worker made and nothing uses any more. */
static void drop_worker(struct worker *w)
{
	if (!w->block->iothread)
		pv_iothread_free(w->thread);
	free(w->requests);
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
	atomic_store(&b->phase, SERVING);
	atomic_store(&b->broken, false);
	for (b->count = 0; b->count < queue_count && result == 0;) {
		result = start_worker(b, b->count, &queues[b->count]);
		if (result == 0)
			b->count++;
	}
	if (result < 0)
		pv_block_stop(b);
	return result;
}

static void enter(struct pv_block *b, enum phase phase)
{
	atomic_store(&b->phase, phase);
	for (uint32_t i = 0; i < b->count; i++)
		(void)eventfd_write(b->workers[i].member.kick.fd, 1);
}

static bool is_idle(const struct pv_block *b)
{
	for (uint32_t i = 0; i < b->count; i++)
		if (atomic_load_explicit(&b->workers[i].in_flight, memory_order_acquire))
			return false;
	return true;
}

int pv_block_drain(struct pv_block *b, uint64_t timeout_ns)
{
	const struct timespec pause = {.tv_nsec = LOOK_NS};
	uint64_t end = now_ns() + timeout_ns;

	enter(b, DRAINING);
	while (!is_idle(b)) {
		if (now_ns() >= end) {
			enter(b, SERVING);
			return -ETIMEDOUT;
		}
		nanosleep(&pause, NULL);
	}
	return 0;
}

void pv_block_stop(struct pv_block *b)
{
	enter(b, STOPPING);
	for (uint32_t i = 0; i < b->count; i++) {
		pv_iothread_detach(b->workers[i].thread, &b->workers[i].member);
		drop_worker(&b->workers[i]);
	}
	free(b->workers);
	b->workers = NULL;
	b->count = 0;
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
