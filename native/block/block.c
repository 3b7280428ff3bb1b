#include "block/block.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "block/internal.h"
#include "sandbox/filter.h"
#include "virtio/irq.h"

#define ALIGN_MAX 4096
#define REQUESTS_BYTES (PV_VIRTQUEUE_SIZE_MAX * sizeof(struct pv_block_request))

static pv_engine_make *engine_of(const struct pv_block *b)
{
	return b->file.flags & PV_BLOCK_THREADS ? pv_pool_new : pv_uring_new;
}

int pv_block_new(const struct pv_block_config *config, struct pv_block **out)
{
	uint32_t aligns = config->offset_align | config->memory_align;
	struct pv_block *b;

	*out = NULL;
	if (config->offset_align == 0 || config->memory_align == 0 || aligns >= 2 * ALIGN_MAX ||
	    (config->offset_align & (config->offset_align - 1)) != 0 ||
	    (config->memory_align & (config->memory_align - 1)) != 0 ||
	    (config->overlay && config->overlay->sectors != config->sectors))
		return -EINVAL;
	b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->file.fd = config->fd;
	b->file.flags = config->flags;
	b->file.overlay = config->overlay;
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
	if (b->iothread)
		pv_iothread_prefer(b->iothread, engine_of(b));
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
static void drop_worker(struct pv_block_worker *w)
{
	if (!w->block->iothread)
		pv_iothread_free(w->thread);
	if (w->requests)
		(void)munmap(w->requests, REQUESTS_BYTES);
	w->thread = NULL;
	w->requests = NULL;
}

/* Of what the heap has given back before, calloc would touch every page. */
static int make_requests(struct pv_block_worker *w)
{
	void *place = mmap(NULL, REQUESTS_BYTES, PROT_READ | PROT_WRITE,
	                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	w->requests = place == MAP_FAILED ? NULL : place;
	return w->requests ? 0 : -ENOMEM;
}

static int make_thread(struct pv_block_worker *w)
{
	char name[32];

	(void)snprintf(name, sizeof(name), "disk %s", w->member.device);
	return pv_iothread_new(PV_SANDBOX_DISK, name, &w->thread);
}

static int start_worker(struct pv_block *b, uint32_t index, const struct pv_queue *queue)
{
	struct pv_block_worker *w = &b->workers[index];
	int result;

	w->member.ops = &PV_BLOCK_OPS;
	w->kick.fd = queue->kick_fd;
	w->member.watches = &w->kick;
	w->member.watch_count = 1;
	w->member.device = pv_virtio_irq_name(b->irq);
	w->block = b;
	w->ring = queue->ring;
	w->counters = &b->counters[index];
	w->faults.rules = pv_virtio_irq_faults(b->irq);
	w->thread = b->iothread;
	result = make_requests(w);
	if (result < 0)
		return result;
	result = w->thread ? 0 : make_thread(w);
	if (result == 0)
		result = pv_iothread_attach(w->thread, engine_of(b), &w->member);
	if (result < 0)
		drop_worker(w);
	return result;
}

/* Have every queue know of it with its next turn. */
static uint32_t give_order(struct pv_block *b, enum pv_block_phase phase)
{
	uint32_t order = atomic_load(&b->order);

	order = (order / PV_BLOCK_PHASES + 1) * PV_BLOCK_PHASES + phase;
	atomic_store(&b->order, order);
	for (uint32_t i = 0; i < b->count; i++)
		(void)eventfd_write(b->workers[i].kick.fd, 1);
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
	(void)give_order(b, PV_BLOCK_DRAINING);
	for (b->count = 0; b->count < queue_count && result == 0;) {
		result = start_worker(b, b->count, &queues[b->count]);
		if (result == 0)
			b->count++;
	}
	if (result < 0)
		(void)pv_block_stop(b, PV_FOREVER);
	else
		(void)give_order(b, PV_BLOCK_SERVING);
	return result;
}

static bool is_quiet(const struct pv_block *b, uint32_t order)
{
	for (uint32_t i = 0; i < b->count; i++) {
		const struct pv_block_worker *w = &b->workers[i];

		if (atomic_load(&w->obeyed) != order ||
		    atomic_load_explicit(&w->in_flight, memory_order_acquire))
			return false;
	}
	return true;
}

int pv_block_drain(struct pv_block *b, uint64_t timeout_ns)
{
	uint64_t deadline = pv_deadline(timeout_ns);
	uint32_t order = give_order(b, PV_BLOCK_DRAINING);
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
	(void)give_order(b, PV_BLOCK_SERVING);
}

void pv_block_halt(struct pv_block *b)
{
	if (pv_block_phase(b) < PV_BLOCK_STOPPING)
		(void)give_order(b, PV_BLOCK_STOPPING);
}

int pv_block_stop(struct pv_block *b, uint64_t timeout_ns)
{
	uint64_t deadline = pv_deadline(timeout_ns);
	int result = 0;

	pv_block_halt(b);
	for (uint32_t i = 0; i < b->count; i++) {
		struct pv_block_worker *w = &b->workers[i];

		if (!w->thread)
			continue;
		if (pv_iothread_detach(w->thread, &w->member, deadline) < 0)
			result = -ETIMEDOUT;
		else
			drop_worker(w);
	}
	if (result < 0) {
		(void)give_order(b, PV_BLOCK_GIVEN_UP);
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

void pv_block_set_overlay(struct pv_block *b, struct pv_overlay *overlay)
{
	b->file.overlay = overlay;
}

int pv_block_take_error(struct pv_block *b, uint32_t *type)
{
	uint64_t noted = atomic_exchange(&b->noted, 0);

	*type = (uint32_t)(noted >> 32);
	return (int)(uint32_t)noted;
}

void pv_block_stats(const struct pv_block *b, struct pv_block_stats *stats)
{
	*stats = (struct pv_block_stats){0};
	if (b->file.overlay)
		stats->overlay_bytes = pv_overlay_bytes(b->file.overlay);
	for (uint32_t i = 0; i < PV_BLOCK_QUEUES; i++) {
		const struct pv_block_counters *c = &b->counters[i];

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
