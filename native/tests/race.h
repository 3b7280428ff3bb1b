/* Two threads that do one thing each at the same moment, over and over: what a full barrier between
 * a store and a load after it is for shows in some of many rounds, where one is left out. */
#ifndef PV_TESTS_RACE_H
#define PV_TESTS_RACE_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "tests/check.h"

#if defined(__SANITIZE_THREAD__)
#define RACE_ROUNDS 2000
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RACE_ROUNDS 2000
#endif
#endif
#ifndef RACE_ROUNDS
#define RACE_ROUNDS 40000
#endif

enum { RACE_SPINS = 2000, RACE_JITTER = 64 };
/* Fewer rounds on a machine that is busy, where they meet the moment less often, too. */
#define RACE_NS UINT64_C(1000000000)

/* `prepare` is called by both sides before they meet, in turn, side 0 first; `act` at once then.
 * What `act` returns says whether the side has seen the other. */
struct race {
	void (*prepare)(void *opaque, int side);
	int (*act)(void *opaque, int side);
	void *opaque;
	uint8_t seen[2][RACE_ROUNDS];
	unsigned rounds;
	uint64_t until;
	atomic_bool over;
	_Alignas(64) _Atomic uint32_t arrived;
};

static inline void race_meet(struct race *race)
{
	uint32_t all = atomic_fetch_add(&race->arrived, 1) / 2 * 2 + 2;

	for (unsigned i = 1; (int32_t)(atomic_load(&race->arrived) - all) < 0; i++)
		if (i % RACE_SPINS == 0)
			sched_yield();
}

static inline void race_run(struct race *race, int side)
{
	uint32_t seed = 0x5eed + (uint32_t)side;

	for (unsigned i = 0; i < RACE_ROUNDS && !atomic_load(&race->over); i++) {
		for (int turn = 0; turn < 2; turn++) {
			if (turn == side)
				race->prepare(race->opaque, side);
			race_meet(race);
		}
		seed = seed * 1103515245 + 12345;
		for (volatile uint32_t j = seed >> 16 & (RACE_JITTER - 1); j > 0; j--)
			;
		race->seen[side][i] = race->act(race->opaque, side) != 0;
		if (side == 0) {
			race->rounds = i + 1;
			atomic_store(&race->over, now_ns() > race->until);
		}
		race_meet(race);
	}
}

static inline void *race_other_side(void *opaque)
{
	race_run(opaque, 1);
	return NULL;
}

/* In each round one side at least is to see the other. */
static inline void race(void (*prepare)(void *, int), int (*act)(void *, int), void *opaque)
{
	static struct race both;
	pthread_t other;

	memset(&both, 0, sizeof(both));
	both.prepare = prepare;
	both.act = act;
	both.opaque = opaque;
	both.until = now_ns() + RACE_NS;
	CHECK(pthread_create(&other, NULL, race_other_side, &both) == 0);
	race_run(&both, 0);
	CHECK(pthread_join(other, NULL) == 0);
	for (unsigned i = 0; i < both.rounds; i++)
		CHECK(both.seen[0][i] || both.seen[1][i]);
}

#endif
