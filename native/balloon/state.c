/* What the parts of a balloon device say of it. */
#include "balloon/internal.h"
#include "virtio/irq.h"

void pv_balloon_count(struct pv_balloon *balloon, enum pv_balloon_counter counter, uint64_t more)
{
	atomic_fetch_add_explicit(&balloon->counters[counter], more, memory_order_relaxed);
}

void pv_balloon_break(struct pv_balloon *balloon, const char *why)
{
	balloon->broken = true;
	pv_virtio_irq_broken(balloon->irq, why);
}

bool pv_balloon_pop(struct pv_balloon *balloon, struct pv_balloon_queue *queue)
{
	struct pv_virtqueue *ring = queue->queue.ring;
	int result = pv_virtqueue_pop(ring, &balloon->chain);

	if (result == 0) {
		queue->wait = PV_BALLOON_KICK;
		if (!pv_virtqueue_enable_kicks(ring))
			return false;
		queue->wait = PV_BALLOON_MORE;
		result = pv_virtqueue_pop(ring, &balloon->chain);
	}
	if (result < 0)
		pv_balloon_break(balloon, pv_virtqueue_error(ring));
	return result > 0;
}
