#include "device.h"

#include <stddef.h>

#include "arena.h"
#include "io.h"
#include "kind.h"

uint32_t get(const struct device *device, uint32_t reg)
{
	return read32(device->base + reg);
}

void set(const struct device *device, uint32_t reg, uint32_t value)
{
	write32(device->base + reg, value);
}

bool device_reset(struct device *device)
{
	uint64_t start = ticks();

	set(device, STATUS, 0);
	while (get(device, STATUS) != 0)
		if (ticks() - start > LIMIT_TICKS)
			return false;
	return true;
}

uint64_t device_offer(const struct device *device)
{
	uint32_t low;

	set(device, DEVICE_FEATURES_SEL, 0);
	low = get(device, DEVICE_FEATURES);
	set(device, DEVICE_FEATURES_SEL, 1);
	return (uint64_t)get(device, DEVICE_FEATURES) << 32 | low;
}

void device_write_features(const struct device *device, uint64_t features)
{
	set(device, DRIVER_FEATURES_SEL, 0);
	set(device, DRIVER_FEATURES, (uint32_t)features);
	set(device, DRIVER_FEATURES_SEL, 1);
	set(device, DRIVER_FEATURES, (uint32_t)(features >> 32));
}

bool device_negotiate(struct device *device, uint64_t features)
{
	set(device, STATUS, ACKNOWLEDGE);
	set(device, STATUS, ACKNOWLEDGE | DRIVER);
	device_write_features(device, features);
	device->accepted = features;
	set(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	return get(device, STATUS) & FEATURES_OK;
}

uint32_t device_queue_max(const struct device *device, uint16_t index)
{
	set(device, QUEUE_SEL, index);
	return get(device, QUEUE_NUM_MAX);
}

void device_place(const struct device *device, uint32_t reg, uint64_t address)
{
	set(device, reg, (uint32_t)address);
	set(device, reg + 4, (uint32_t)(address >> 32));
}

struct queue *device_queue(struct device *device, uint16_t index, uint32_t size)
{
	struct queue *queue = &device->queues[index];
	uint32_t most = device_queue_max(device, index);

	*queue = (struct queue){.index = index};
	if (most == 0)
		return queue;
	queue->size = (uint16_t)(size < most ? size : most);
	queue->desc = arena_take((queue->size + 1) * (uint32_t)sizeof(struct desc), DEVICE_READS);
	queue->avail = arena_take(6 + queue->size * 2u, DEVICE_READS);
	queue->used = arena_take(6 + queue->size * 8u, DEVICE_WRITES);
	set(device, QUEUE_NUM, queue->size);
	device_place(device, QUEUE_DESC, (uintptr_t)queue->desc);
	device_place(device, QUEUE_DRIVER, (uintptr_t)queue->avail);
	device_place(device, QUEUE_DEVICE, (uintptr_t)queue->used);
	return queue;
}

void device_queues(struct device *device, uint32_t main_size)
{
	uint16_t main = device->kind->main;

	for (uint16_t index = 0; index < QUEUES_MAX; index++)
		device->queues[index] = (struct queue){.index = index};
	for (uint16_t index = 0; index < kind_queues(device); index++)
		if (device_queue(device, index, index == main ? main_size : RING_SIZE)->size)
			set(device, QUEUE_READY, 1);
}

const char *device_start(struct device *device, uint64_t with, uint64_t without)
{
	uint64_t features = (device->kind->features | with | VERSION_1) & ~without;

	arena_clear();
	if (!device_reset(device))
		return "does not reset";
	if (!device_negotiate(device, features & device_offer(device)))
		return "does not take what it offers";
	device_queues(device, RING_SIZE);
	set(device, STATUS, get(device, STATUS) | DRIVER_OK);
	return get(device, STATUS) & NEEDS_RESET ? "does not start" : NULL;
}
