/* Taking, completing and publishing, and when to notify, for queues of every size, whatever the
 * driver makes of its rings meanwhile. The rings end where their memory ends. */
#include "proofs/model.h"

#include "virtio/virtqueue.c"

#define MOST PV_VIRTQUEUE_SIZE_MAX

static struct pv_desc desc[MOST];
static struct {
	uint16_t flags, idx, ring[MOST + 1];
} avail;
static struct {
	struct {
		uint16_t flags, idx;
	} head;
	struct pv_used_elem ring[MOST];
	uint16_t event;
} used;
static struct pv_virtqueue queue;
static struct pv_chain chain;

void *pv_memory_at(const struct pv_memory *memory, uint64_t address, uint64_t length)
{
	return NULL;
}

int pv_virtqueue_fail(struct pv_virtqueue *broken, const char *format, ...)
{
	broken->error = broken->reason;
	return -EPROTO;
}

int pv_virtqueue_walk(struct pv_virtqueue *walked, uint16_t head, struct pv_chain *out)
{
	/*@ assert in_table: head < walked->size; */
	return PV_ANY_BOOL() ? 0 : -EPROTO;
}

static void any_queue(unsigned order, unsigned event_idx)
{
	unsigned unused = MOST - (1u << order);

	PV_UNKNOWN(desc);
	PV_UNKNOWN(avail);
	PV_UNKNOWN(used);
	PV_UNKNOWN(queue.in_flight);
	queue.size = (uint16_t)(MOST - unused);
	queue.event_idx = (uint8_t)event_idx;
	queue.desc = &desc[unused];
	queue.avail = (const struct pv_avail *)((char *)&avail + unused * sizeof(avail.ring[0]));
	queue.used = (struct pv_used *)((char *)&used + unused * sizeof(used.ring[0]));
	queue.used_event = &queue.avail->ring[queue.size];
	queue.avail_event = (uint16_t *)&queue.used->ring[queue.size];
	queue.next_avail = (uint16_t)PV_ANY(0, UINT16_MAX);
	queue.known_avail = (uint16_t)PV_ANY(0, UINT16_MAX);
	queue.next_used = (uint16_t)PV_ANY(0, UINT16_MAX);
	queue.notified_used = (uint16_t)PV_ANY(0, UINT16_MAX);
	queue.published_used = (uint16_t)PV_ANY(0, UINT16_MAX);
	queue.in_flight_count = (uint16_t)PV_ANY(0, MOST);
	queue.error = PV_ANY_BOOL() ? queue.reason : NULL;
}

int main(void)
{
	int result = 0;

	any_queue(pv_each(1) ? pv_each(7) : 8 + pv_each(2), pv_each(1));
	switch (pv_each(6)) {
	case 0:
		result = pv_virtqueue_pop(&queue, &chain);
		/*@ assert taken_below_size: result == 1 ==> chain.head < queue.size; */
		break;
	case 1:
		result = pv_virtqueue_push(&queue, (uint16_t)PV_ANY(0, UINT16_MAX),
		                           PV_ANY(0, UINT32_MAX));
		break;
	case 2:
		pv_virtqueue_publish(&queue);
		result = pv_virtqueue_needs_notify(&queue);
		break;
	case 3:
		result = pv_virtqueue_enable_kicks(&queue);
		pv_virtqueue_disable_kicks(&queue);
		break;
	case 4:
		result = pv_virtqueue_rewind(&queue);
		break;
	case 5:
		result = pv_virtqueue_waiting(&queue) + pv_virtqueue_served(&queue);
		break;
	default:
		pv_virtqueue_restore(&queue, (uint16_t)PV_ANY(0, UINT16_MAX),
		                     (uint16_t)PV_ANY(0, UINT16_MAX));
	}
	return result;
}
