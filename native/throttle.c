#include "throttle_internal.h"

#define NS_PER_S UINT64_C(1000000000)
#define BUCKET_NS (NS_PER_S / 10)

void pv_throttle_init(struct pv_throttle *throttle, uint64_t rate)
{
	throttle->rate = rate;
	throttle->interval_ns = rate ? NS_PER_S / rate : 0;
	throttle->burst_ns =
		throttle->interval_ns < BUCKET_NS ? BUCKET_NS - throttle->interval_ns : 0;
	atomic_init(&throttle->full_at, 0);
}

uint64_t pv_throttle_take(struct pv_throttle *throttle, uint64_t now)
{
	uint64_t full_at = atomic_load(&throttle->full_at);
	uint64_t from;

	if (throttle->interval_ns == 0)
		return 0;
	do {
		from = full_at > now ? full_at : now;
		if (from - now > throttle->burst_ns)
			return from - now - throttle->burst_ns;
	} while (!atomic_compare_exchange_weak(&throttle->full_at, &full_at,
	                                       from + throttle->interval_ns));
	return 0;
}

uint64_t pv_throttle_delay(struct pv_throttle *throttle, uint64_t now)
{
	uint64_t full_at = atomic_load(&throttle->full_at);

	return throttle->rate > 0 && full_at > now + BUCKET_NS ? full_at - now - BUCKET_NS : 0;
}

void pv_throttle_charge(struct pv_throttle *throttle, uint64_t now, uint64_t tokens)
{
	uint64_t full_at = atomic_load(&throttle->full_at);
	uint64_t cost, from;

	if (throttle->rate == 0)
		return;
	cost = tokens * NS_PER_S / throttle->rate;
	do
		from = full_at > now ? full_at : now;
	while (!atomic_compare_exchange_weak(&throttle->full_at, &full_at, from + cost));
}
