/* Statistics of the guest (virtio 1.2, 5.5.6.3). The queue works the other way round: its one buffer
 * holds what the driver knew when it made it available, and is given back to ask for more. It stays
 * in the ring until then. */
#include <time.h>

#include "balloon/internal.h"
#include "virtio/iov_internal.h"
#include "virtio/irq.h"

#define ENTRIES_MAX 64 /* that are looked at */

struct entry {
	uint16_t tag;
	uint64_t value;
} __attribute__((packed));

_Static_assert(sizeof(struct entry) == 10, "layout");

static void read_entries(struct pv_balloon *balloon)
{
	const struct pv_chain *chain = &balloon->chain;
	struct entry entries[ENTRIES_MAX];
	size_t bytes = pv_iov_gather(chain->iov, chain->readable, 0, entries, sizeof(entries));

	for (size_t i = 0; i < bytes / sizeof(entries[0]); i++)
		if (entries[i].tag < PV_BALLOON_TAGS)
			atomic_store_explicit(&balloon->values[entries[i].tag], entries[i].value,
			                      memory_order_relaxed);
	atomic_store(&balloon->updated, (uint64_t)time(NULL));
	pv_balloon_count(balloon, PV_BALLOON_STATISTICS, 1);
}

static void give_back(struct pv_balloon *balloon, struct pv_balloon_queue *queue, uint64_t now)
{
	struct pv_virtqueue *ring = queue->queue.ring;

	if (!pv_balloon_pop(balloon, queue))
		return;
	pv_virtqueue_push(ring, balloon->chain.head, 0);
	balloon->asked_at = now;
	queue->wait = PV_BALLOON_MORE;
	pv_virtqueue_publish(ring);
	balloon->notify |= pv_virtqueue_needs_notify(ring) != 0;
}

static void look(struct pv_balloon *balloon, struct pv_balloon_queue *queue)
{
	if (!pv_balloon_pop(balloon, queue))
		return;
	if (balloon->chain.writable > 0) {
		pv_balloon_break(balloon, "a buffer of statistics that is to be written");
		return;
	}
	read_entries(balloon);
	pv_virtqueue_rewind(queue->queue.ring);
	queue->wait = PV_BALLOON_TIME;
	if (balloon->asked_at > 0 && atomic_load(&balloon->tell))
		pv_virtio_irq_news(balloon->irq);
}

/* A driver that answers at once is asked no sooner than the interval says. */
void pv_balloon_serve_statistics(struct pv_balloon *balloon, uint64_t now)
{
	struct pv_balloon_queue *queue = &balloon->queues[PV_BALLOON_TELL];
	uint64_t interval = atomic_load(&balloon->interval_ns);

	if (queue->wait == PV_BALLOON_MORE)
		look(balloon, queue);
	if (balloon->broken || queue->wait != PV_BALLOON_TIME || interval == 0)
		return;
	if (balloon->asked_at == 0 || now - balloon->asked_at >= interval)
		give_back(balloon, queue, now);
}
