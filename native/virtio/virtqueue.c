#include "virtio/virtqueue.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "virtio/virtqueue_internal.h"

/* The fields that both sides touch at the same time are of 16 bits, and accessed whole. */
static uint16_t load_relaxed(const uint16_t *field)
{
	return __atomic_load_n(field, __ATOMIC_RELAXED);
}

static uint16_t load_acquire(const uint16_t *field)
{
	return __atomic_load_n(field, __ATOMIC_ACQUIRE);
}

static void store_relaxed(uint16_t *field, uint16_t value)
{
	__atomic_store_n(field, value, __ATOMIC_RELAXED);
}

static void store_release(uint16_t *field, uint16_t value)
{
	__atomic_store_n(field, value, __ATOMIC_RELEASE);
}

/* Between telling the driver something and looking what it did meanwhile. */
static void full_barrier(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void *ring_at(const struct pv_memory *memory, uint64_t address, uint64_t size,
                     uint64_t alignment)
{
	return address % alignment == 0 ? pv_memory_at(memory, address, size) : NULL;
}

int pv_virtqueue_new(const struct pv_memory *memory, const struct pv_virtqueue_config *config,
                     struct pv_virtqueue **out)
{
	uint64_t size = config->size;
	/* Each ring ends with the other side's event index, there even if it was not negotiated. */
	uint64_t avail_size = offsetof(struct pv_avail, ring) + (size + 1) * sizeof(uint16_t);
	uint64_t used_size = offsetof(struct pv_used, ring) + size * sizeof(struct pv_used_elem) +
	                     sizeof(uint16_t);
	struct pv_virtqueue *queue;

	*out = NULL;
	if (size == 0 || size > PV_VIRTQUEUE_SIZE_MAX || (size & (size - 1)) != 0)
		return -EINVAL;
	queue = calloc(1, sizeof(*queue));
	if (!queue)
		return -ENOMEM;
	queue->memory = memory;
	queue->place = *config;
	queue->desc = ring_at(memory, config->desc, size * sizeof(struct pv_desc), 16);
	queue->avail = ring_at(memory, config->avail, avail_size, 2);
	queue->used = ring_at(memory, config->used, used_size, 4);
	if (!queue->desc || !queue->avail || !queue->used) {
		free(queue);
		return -EINVAL;
	}
	queue->used_event = &queue->avail->ring[size];
	queue->avail_event = (uint16_t *)&queue->used->ring[size];
	queue->size = config->size;
	queue->event_idx = config->event_idx != 0;
	queue->indirect = config->indirect != 0;
	*out = queue;
	return 0;
}

void pv_virtqueue_free(struct pv_virtqueue *queue)
{
	free(queue);
}

uint16_t pv_virtqueue_rewind(struct pv_virtqueue *queue)
{
	queue->next_avail = (uint16_t)(queue->next_avail - queue->in_flight_count);
	queue->in_flight_count = 0;
	memset(queue->in_flight, 0, sizeof(queue->in_flight));
	return queue->next_avail;
}

void pv_virtqueue_seek(struct pv_virtqueue *queue, uint16_t next)
{
	queue->next_avail = queue->known_avail = next;
	queue->next_used = queue->published_used = queue->notified_used = next;
}

void pv_virtqueue_save(const struct pv_virtqueue *queue, uint16_t *next_avail,
                       uint16_t *next_used)
{
	*next_avail = queue->next_avail;
	*next_used = queue->next_used;
}

void pv_virtqueue_restore(struct pv_virtqueue *queue, uint16_t next_avail, uint16_t next_used)
{
	pv_virtqueue_seek(queue, next_used);
	queue->next_avail = queue->known_avail = next_avail;
}

void pv_virtqueue_place(const struct pv_virtqueue *queue, struct pv_virtqueue_config *out)
{
	*out = queue->place;
}

uint16_t pv_virtqueue_served(const struct pv_virtqueue *queue)
{
	return load_acquire(&queue->used->idx);
}

uint16_t pv_virtqueue_waiting(const struct pv_virtqueue *queue)
{
	uint16_t served = load_acquire(&queue->used->idx);

	return (uint16_t)(load_acquire(&queue->avail->idx) - served);
}

uint16_t pv_virtqueue_size(const struct pv_virtqueue *queue)
{
	return queue->size;
}

uint16_t pv_virtqueue_in_flight(const struct pv_virtqueue *queue)
{
	return queue->in_flight_count;
}

static int is_in_flight(const struct pv_virtqueue *queue, uint16_t head)
{
	return (queue->in_flight[head / 64] >> head % 64 & 1) != 0;
}

static void flip_in_flight(struct pv_virtqueue *queue, uint16_t head)
{
	queue->in_flight[head / 64] ^= UINT64_C(1) << head % 64;
}

/* 1 when there is an entry to take, 0 when there is none. */
static int look(struct pv_virtqueue *queue)
{
	uint16_t ahead;

	if (queue->known_avail != queue->next_avail)
		return 1;
	/* Pairs with the driver's barrier before it moves idx: entries and descriptors follow. */
	queue->known_avail = load_acquire(&queue->avail->idx);
	ahead = (uint16_t)(queue->known_avail - queue->next_avail);
	if (ahead > queue->size)
		return pv_virtqueue_fail(queue, "avail idx is %u, %u ahead in a queue of %u",
		                         queue->known_avail, ahead, queue->size);
	return ahead != 0;
}

/* Fetch the descriptor of the entry after this one while this one is served. */
static void prefetch_next(const struct pv_virtqueue *queue)
{
	uint16_t next = (uint16_t)(queue->next_avail + 1);
	uint16_t mask = (uint16_t)(queue->size - 1);

	if (next != queue->known_avail)
		__builtin_prefetch(&queue->desc[load_relaxed(&queue->avail->ring[next & mask]) & mask]);
}

int pv_virtqueue_pop(struct pv_virtqueue *queue, struct pv_chain *chain)
{
	uint16_t head;
	int result;

	if (atomic_load_explicit(&queue->error, memory_order_relaxed))
		return -EPROTO;
	result = look(queue);
	if (result <= 0)
		return result;
	prefetch_next(queue);
	head = load_relaxed(&queue->avail->ring[queue->next_avail & (queue->size - 1)]);
	if (head >= queue->size)
		return pv_virtqueue_fail(queue, "head %u in a queue of %u", head, queue->size);
	if (is_in_flight(queue, head))
		return pv_virtqueue_fail(queue, "head %u while it is in flight", head);
	result = pv_virtqueue_walk(queue, head, chain);
	if (result < 0)
		return result;
	chain->head = head;
	flip_in_flight(queue, head);
	queue->in_flight_count++;
	queue->next_avail++;
	return 1;
}

int pv_virtqueue_push(struct pv_virtqueue *queue, uint16_t head, uint32_t written)
{
	struct pv_used_elem *elem = &queue->used->ring[queue->next_used & (queue->size - 1)];

	if (head >= queue->size || !is_in_flight(queue, head))
		return -EPROTO;
	elem->id = head;
	elem->len = written;
	flip_in_flight(queue, head);
	queue->in_flight_count--;
	queue->next_used++;
	return 0;
}

void pv_virtqueue_publish(struct pv_virtqueue *queue)
{
	if (queue->published_used == queue->next_used)
		return;
	store_release(&queue->used->idx, queue->next_used);
	queue->published_used = queue->next_used;
}

int pv_virtqueue_needs_notify(struct pv_virtqueue *queue)
{
	uint16_t before = queue->notified_used, now = queue->published_used;

	if (before == now)
		return 0;
	queue->notified_used = now;
	full_barrier();
	if (!queue->event_idx)
		return !(load_relaxed(&queue->avail->flags) & PV_AVAIL_NO_INTERRUPT);
	/* Was the entry that the driver waits for among those since the last decision? */
	return (uint16_t)(load_relaxed(queue->used_event) - before) < (uint16_t)(now - before);
}

int pv_virtqueue_enable_kicks(struct pv_virtqueue *queue)
{
	if (atomic_load_explicit(&queue->error, memory_order_relaxed))
		return 0;
	if (queue->event_idx)
		store_relaxed(queue->avail_event, queue->next_avail);
	else
		store_relaxed(&queue->used->flags, 0);
	full_barrier();
	if (queue->known_avail != queue->next_avail)
		return 1;
	/* What is seen then is what the next pop takes, so that a driver whose idx goes to and fro
	 * keeps nobody. */
	return load_relaxed(&queue->avail->idx) != queue->next_avail && look(queue) != 0;
}

void pv_virtqueue_disable_kicks(struct pv_virtqueue *queue)
{
	/* With event indexes, one that has gone by asks for nothing. */
	if (!queue->event_idx)
		store_relaxed(&queue->used->flags, PV_USED_NO_NOTIFY);
}
