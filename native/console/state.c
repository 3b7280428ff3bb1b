#include "console/state_internal.h"

#include <time.h>
#include <unistd.h>

uint64_t pv_console_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * PV_NS_PER_S + (uint64_t)time.tv_nsec;
}

void pv_console_signal(int event_fd)
{
	const uint64_t one = 1;
	ssize_t written = write(event_fd, &one, sizeof(one));

	(void)written; /* a full counter wakes just as well */
}

bool pv_console_settled(const struct pv_console *c)
{
	return pv_ring_used(c->output) == 0 || !atomic_load(&c->taken);
}

bool pv_console_half_free(const struct pv_console *c)
{
	return pv_ring_room(c->output) >= PV_CONSOLE_HALF;
}
