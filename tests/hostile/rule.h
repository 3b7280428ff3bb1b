/* A rule, and the tables of all. */
#pragma once

#include "play.h"

#define ANY_KIND 0u
#define KIND(id) (1u << (id))

/* `play` begins with the device at DRIVER_OK. Where there is none, a request of the kind's is laid
 * out, and made available once `damage` has been to it. */
struct rule {
	const char *name;
	unsigned kinds;      /* KIND(id), or ANY_KIND */
	unsigned may;        /* MAY(answer) */
	uint64_t with;       /* feature that the device is to offer, and the driver accepts */
	uint64_t without;    /* features that the driver does not accept */
	void (*damage)(struct play *play);
	enum answer (*play)(struct play *play);
};

#define RULES_END {.name = 0}

extern const struct rule register_rules[];
extern const struct rule access_rules[];
extern const struct rule queue_rules[];
extern const struct rule ring_rules[];
extern const struct rule chain_rules[];
extern const struct rule indirect_rules[];
extern const struct rule life_rules[];
extern const struct rule block_rules[];
extern const struct rule net_rules[];
extern const struct rule other_rules[];

/* One rule on one device, and whether the device is whole after it: its line of the report. */
enum verdict { PASSES, FAILS, IS_SKIPPED };
enum verdict rule_play(const struct rule *rule, struct device *device, unsigned number);
