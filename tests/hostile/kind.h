/* A kind of device: what its driver negotiates, and a request that it is to serve. */
#pragma once

#include "device.h"

#define SEGMENTS_MAX 4

enum direction { OUT, IN }; /* IN: the device writes */

struct segment {
	void *at;
	uint32_t length;
	enum direction direction;
};

struct request {
	struct segment segments[SEGMENTS_MAX];
	unsigned count;
	uint16_t head; /* its first descriptor, and the others follow */
	uint16_t tail; /* its last */
	uint32_t room; /* bytes that the device may write */
};

/* What came of a request; more in answer.h. */
enum outcome { OUTCOME_SERVED, OUTCOME_ERROR, OUTCOME_NOTHING, OUTCOME_BAD };

struct kind {
	uint32_t id;
	const char *name;
	uint64_t features;  /* beside VERSION_1 */
	uint16_t queues;    /* at most QUEUES_MAX, as far as the device has them */
	uint16_t main;      /* the one that requests go to */
	void (*fill)(const struct device *device, struct request *request);
	/* Of a used entry with `length`, which is at most the request's room. */
	enum outcome (*judge)(const struct request *request, uint32_t length);
};

/* NULL: none that is known. */
const struct kind *kind_find(uint32_t id);

/* How many queues its driver uses with the features accepted. */
uint16_t kind_queues(const struct device *device);

/* Add a piece of memory to a request; its start. */
void *request_add(struct request *request, uint32_t length, enum direction direction);
