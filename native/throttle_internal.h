/* A token bucket: so many operations or bytes a second, from any number of threads.
 *
 * It holds what a tenth of a second brings, and one token at least. The state is one number, the
 * time at which the bucket would be full again, so that taking a token is one atomic exchange
 * (the generic cell rate algorithm, ITU-T I.371). */
#ifndef PV_THROTTLE_INTERNAL_H
#define PV_THROTTLE_INTERNAL_H

#include <stdatomic.h>
#include <stdint.h>

struct pv_throttle {
	uint64_t rate;        /* tokens a second; 0: no limit */
	uint64_t interval_ns; /* of one token; 0: no limit */
	uint64_t burst_ns;    /* of all but one in a full bucket */
	_Atomic uint64_t full_at;
};

/* `rate` in tokens a second; 0: no limit. */
void pv_throttle_init(struct pv_throttle *throttle, uint64_t rate);

/* Take a token at the time `now`, in nanoseconds of a clock that does not go back. 0: taken;
 * otherwise how long from now there will be one. For rates up to 1,000,000. Any thread. */
uint64_t pv_throttle_take(struct pv_throttle *throttle, uint64_t now);

/* Where an operation's tokens are known only when it is done: how long it has to wait until the
 * bucket holds some, 0: not at all; and what it took, up to 2^32, more than there is, perhaps: the
 * next one waits so much longer. Any thread. */
uint64_t pv_throttle_delay(struct pv_throttle *throttle, uint64_t now);
void pv_throttle_charge(struct pv_throttle *throttle, uint64_t now, uint64_t tokens);

#endif
