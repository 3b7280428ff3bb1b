#include "net/internal.h"

void pv_net_limit_init(struct pv_net_limit *limit, uint64_t packets, uint64_t bytes)
{
	pv_throttle_init(&limit->packets, packets);
	pv_throttle_init(&limit->bytes, bytes);
	limit->limited = packets > 0 || bytes > 0;
}

uint64_t pv_net_limit_delay(struct pv_net_limit *limit)
{
	uint64_t now, packets, bytes;

	if (!limit->limited)
		return 0;
	now = pv_now_ns();
	packets = pv_throttle_delay(&limit->packets, now);
	bytes = pv_throttle_delay(&limit->bytes, now);
	return packets > bytes ? packets : bytes;
}

void pv_net_limit_charge(struct pv_net_limit *limit, uint64_t bytes)
{
	uint64_t now;

	if (!limit->limited)
		return;
	now = pv_now_ns();
	pv_throttle_charge(&limit->packets, now, 1);
	pv_throttle_charge(&limit->bytes, now, bytes);
}
