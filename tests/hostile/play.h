/* One rule played against one device: a request, damaged, and what the device answers. */
#pragma once

#include "device.h"
#include "kind.h"

/* What a device did; a rule says which of these it may. */
enum answer {
	SERVED,  /* as asked for */
	DONE,    /* taken and given back, with nothing written: what devices that only read say */
	ERROR,   /* the kind's own way to say no */
	SILENCE, /* nothing, for QUIET_TICKS */
	BROKEN,  /* NEEDS_RESET */
	REFUSED, /* features or a queue not taken */
	WRONG,   /* against the specification; play.why says what */
	SKIPPED, /* not to be played here; play.why says why */
	ANSWERS,
};

#define MAY(answer) (1u << (answer))
/* The device is to work on. */
#define WORKS (MAY(SERVED) | MAY(DONE))
/* The request is not to be carried out. */
#define REFUSES (MAY(DONE) | MAY(ERROR) | MAY(SILENCE) | MAY(BROKEN) | MAY(REFUSED))
/* Whatever the device makes of it, it hurts nobody. */
#define ANYTHING (MAY(SERVED) | REFUSES)

struct play {
	struct device *device;
	struct queue *queue; /* the kind's main one */
	struct request request;
	const char *why;
};

/* Note why, and say WRONG or SKIPPED. */
enum answer wrong(struct play *play, const char *why);
enum answer skipped(struct play *play, const char *why);

/* Have the device at DRIVER_OK, with nothing to do; false: play->why says why it is not. */
bool play_start(struct play *play, uint64_t with, uint64_t without);

/* Make a request of the kind's, and put it into the main queue's descriptors. */
void play_lay_out(struct play *play);
/* The same of what is in `request`, for any queue; keeps its place there. */
void lay_out(struct queue *queue, struct request *request);

/* The first and last descriptor of the request that is laid out. */
struct desc *play_head(const struct play *play);
struct desc *play_tail(const struct play *play);

/* Put a head into the available ring, and show it. */
void make_available(struct queue *queue, uint16_t head);
void show(struct queue *queue);
void kick(const struct device *device, const struct queue *queue);

/* Wait until the device answers to what is available; what it wrote is judged. */
enum answer play_observe(struct play *play);
/* The same for another queue, whose used entries are taken as they come. */
enum answer play_observe_queue(struct play *play, struct queue *queue);

/* Make the request available, kick, observe. */
enum answer play_submit(struct play *play);

/* Lay a request of the kind's out, and submit it. */
enum answer play_valid(struct play *play);
