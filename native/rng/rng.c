#include "rng/rng.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "rng/internal.h"
#include "sandbox/filter.h"
#include "virtio/irq.h"

#define NS_PER_S UINT64_C(1000000000)
#define PIECES_PER_S 10 /* that a limited rate is handed out in, at least */

_Static_assert(sizeof(struct pv_rng_stats) == PV_RNG_COUNTERS * sizeof(uint64_t), "same order");

/* A request that took more than a tenth of a second's worth would keep the next one long. */
static uint64_t piece(uint64_t rate)
{
	uint64_t share = rate / PIECES_PER_S;

	if (rate == 0 || share > PV_RNG_REQUEST_MAX)
		return PV_RNG_REQUEST_MAX;
	return share > 0 ? share : 1;
}

int pv_rng_new(int fd, uint64_t rate, struct pv_rng **out)
{
	struct pv_rng *rng = calloc(1, sizeof(*rng));
	int result;

	*out = NULL;
	if (!rng)
		return -ENOMEM;
	rng->fd = fd;
	rng->piece = piece(rate);
	pv_throttle_init(&rng->throttle, rate);
	rng->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (rng->wake_fd < 0) {
		result = -errno;
		free(rng);
		return result;
	}
	*out = rng;
	return 0;
}

void pv_rng_free(struct pv_rng *rng)
{
	if (!rng)
		return;
	close(rng->wake_fd);
	free(rng);
}

static int64_t patience(const struct pv_rng *rng)
{
	uint64_t now;

	if (rng->wait != PV_RNG_TIME)
		return rng->wait == PV_RNG_MORE ? 0 : -1;
	now = pv_now_ns();
	return rng->until > now ? (int64_t)(rng->until - now) : 0;
}

/* A kick is heeded when it is waited for; the end always. */
static void wait(struct pv_rng *rng)
{
	int64_t timeout = patience(rng);
	struct timespec time = {.tv_sec = timeout / (int64_t)NS_PER_S,
	                        .tv_nsec = timeout % (int64_t)NS_PER_S};
	struct pollfd fds[] = {
		{.fd = rng->wake_fd, .events = POLLIN},
		{.fd = rng->wait == PV_RNG_KICK ? rng->queue.kick_fd : -1, .events = POLLIN},
		{.fd = rng->wait == PV_RNG_SOURCE ? rng->fd : -1, .events = POLLIN},
	};
	eventfd_t value;

	(void)ppoll(fds, sizeof(fds) / sizeof(fds[0]), timeout < 0 ? NULL : &time, NULL);
	if (fds[1].revents & POLLIN) {
		(void)eventfd_read(rng->queue.kick_fd, &value);
		pv_rng_count(rng, PV_RNG_KICKS, 1);
	}
}

static void *run(void *device)
{
	struct pv_rng *rng = device;
	eventfd_t value;

	pv_thread_is(PV_SANDBOX_RNG, "rng", pv_virtio_irq_name(rng->irq));
	while (!pv_thread_is_to_end(&rng->thread)) {
		if (rng->wait != PV_RNG_END)
			pv_rng_serve(rng, pv_now_ns());
		wait(rng);
	}
	(void)eventfd_read(rng->wake_fd, &value);
	return NULL;
}

int pv_rng_start(struct pv_rng *rng, const struct pv_queue *queue, struct pv_virtio_irq *irq)
{
	int result;

	if (rng->running)
		return -EBUSY;
	pv_rng_begin(rng, queue, irq);
	result = pv_thread_run(&rng->thread, run, rng);
	rng->running = result == 0;
	return result;
}

int pv_rng_stop(struct pv_rng *rng, uint64_t timeout_ns)
{
	if (!rng->running)
		return 0;
	pv_thread_ask(&rng->thread);
	(void)eventfd_write(rng->wake_fd, 1);
	if (pv_thread_wait(&rng->thread, pv_deadline(timeout_ns)) < 0)
		return -ETIMEDOUT;
	rng->running = false;
	return 0;
}

int pv_rng_drain(struct pv_rng *rng, uint64_t timeout_ns)
{
	if (rng->running && pv_thread_pause(&rng->thread, rng->wake_fd, timeout_ns) < 0)
		return -ETIMEDOUT;
	rng->running = false;
	return 0;
}

int pv_rng_take_failure(struct pv_rng *rng)
{
	return atomic_exchange(&rng->failure, 0);
}

void pv_rng_stats(const struct pv_rng *rng, struct pv_rng_stats *stats)
{
	uint64_t values[PV_RNG_COUNTERS];

	for (uint32_t i = 0; i < PV_RNG_COUNTERS; i++)
		values[i] = atomic_load_explicit(&rng->counters[i], memory_order_relaxed);
	memcpy(stats, values, sizeof(*stats));
}
