/* One device behind virtio-mmio registers, and a driver's way to DRIVER_OK. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "virtio.h"

#define DEVICES_MAX 32
#define QUEUES_MAX 6
#define RING_SIZE 8

struct kind;

struct queue {
	uint16_t index;
	uint16_t size; /* 0: there is none */
	uint16_t made; /* what the driver's idx is to be: entries made available */
	uint16_t seen; /* the device's idx, as looked at */
	uint16_t free; /* the first descriptor of no chain */
	struct desc *desc; /* and one that is not the device's to look at */
	struct avail *avail;
	struct used *used;
};

struct device {
	uintptr_t base;
	uint32_t window; /* bytes of it */
	uint32_t id;
	unsigned number; /* among those of its kind */
	uint64_t offered;
	uint64_t accepted;
	const struct kind *kind;
	bool is_lost; /* did not come back from a reset */
	struct queue queues[QUEUES_MAX];
};

uint32_t get(const struct device *device, uint32_t reg);
void set(const struct device *device, uint32_t reg, uint32_t value);

/* Write 0 to Status; false: it does not read 0 in time. */
bool device_reset(struct device *device);

uint64_t device_offer(const struct device *device);
void device_write_features(const struct device *device, uint64_t features);

/* From a reset to FEATURES_OK; false: it does not stand. */
bool device_negotiate(struct device *device, uint64_t features);

/* How many entries a queue may have; 0: there is no such queue. */
uint32_t device_queue_max(const struct device *device, uint16_t index);

/* Make a queue of at most so many entries, and write its place to the registers, but not
 * QueueReady. */
struct queue *device_queue(struct device *device, uint16_t index, uint32_t size);
void device_place(const struct device *device, uint32_t reg, uint64_t address);

/* All of it, with the features that the kind's driver knows; NULL, or what went wrong. */
const char *device_start(struct device *device, uint64_t with, uint64_t without);

/* Have the queues of the kind's driver ready, the main one with at most so many entries: what is
 * between FEATURES_OK and DRIVER_OK. */
void device_queues(struct device *device, uint32_t main_size);
