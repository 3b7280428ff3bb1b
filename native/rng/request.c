/* The requests of an entropy device. Each is popped, answered and pushed before the next, or put
 * back into the ring, so that none is held while something is waited for. */
#include <errno.h>
#include <sys/uio.h>

#include "rng/internal.h"
#include "virtio/irq.h"

#define REQUESTS 16 /* in a turn */
#define NS_PER_S UINT64_C(1000000000)
#define RETRY_NS NS_PER_S  /* until a source that failed is asked again */
#define NAP_NS 10000000    /* until one is that says it has bytes, and has none */

void pv_rng_count(struct pv_rng *rng, enum pv_rng_counter counter, uint64_t more)
{
	atomic_fetch_add_explicit(&rng->counters[counter], more, memory_order_relaxed);
}

void pv_rng_begin(struct pv_rng *rng, const struct pv_queue *queue, struct pv_virtio_irq *irq)
{
	rng->queue = *queue;
	rng->irq = irq;
	rng->wait = PV_RNG_MORE;
	rng->was_empty = false;
	rng->last_error = 0;
}

static void break_device(struct pv_rng *rng, const char *why)
{
	rng->wait = PV_RNG_END;
	pv_virtio_irq_broken(rng->irq, why);
}

static void wait_until(struct pv_rng *rng, uint64_t time)
{
	rng->wait = PV_RNG_TIME;
	rng->until = time;
}

/* What a driver may not do (5.4.6.1); NULL: it is as it should be. */
static const char *fault(const struct pv_chain *chain)
{
	if (chain->readable > 0)
		return "a buffer for random bytes that is to be read";
	if (chain->writable == 0)
		return "a buffer for random bytes without room";
	return NULL;
}

/* Bytes read into the chain, of up to `piece`; -errno, of which -ENODATA is the source's end. */
static ssize_t fill(struct pv_rng *rng)
{
	struct iovec *iov = rng->chain.iov;
	uint64_t left = rng->piece;
	int count = 0;
	ssize_t bytes;

	for (; count < rng->chain.writable && left > 0; count++) {
		if (iov[count].iov_len > left)
			iov[count].iov_len = left;
		left -= iov[count].iov_len;
	}
	do
		bytes = readv(rng->fd, iov, count);
	while (bytes < 0 && errno == EINTR);
	if (bytes == 0)
		return -ENODATA;
	return bytes < 0 ? -errno : bytes;
}

/* Not every device of the host can be waited for: poll(2) says of such a one that it has bytes. */
static void wait_for_source(struct pv_rng *rng, uint64_t now)
{
	pv_rng_count(rng, PV_RNG_BLOCKED, 1);
	if (rng->was_empty)
		wait_until(rng, now + NAP_NS);
	else
		rng->wait = PV_RNG_SOURCE;
	rng->was_empty = true;
}

static void note_failure(struct pv_rng *rng, int error, uint64_t now)
{
	pv_rng_count(rng, PV_RNG_ERRORS, 1);
	wait_until(rng, now + RETRY_NS);
	if (error == rng->last_error)
		return;
	rng->last_error = error;
	atomic_store(&rng->failure, error);
	pv_virtio_irq_news(rng->irq);
}

/* False: it is not answered now. */
static bool answer(struct pv_rng *rng, uint64_t now)
{
	uint64_t delay = pv_throttle_delay(&rng->throttle, now);
	ssize_t bytes;

	if (delay > 0) {
		pv_rng_count(rng, PV_RNG_THROTTLED, 1);
		wait_until(rng, now + delay);
		return false;
	}
	bytes = fill(rng);
	if (bytes == -EAGAIN)
		wait_for_source(rng, now);
	else if (bytes < 0)
		note_failure(rng, (int)-bytes, now);
	if (bytes < 0)
		return false;
	rng->was_empty = false;
	rng->last_error = 0;
	pv_throttle_charge(&rng->throttle, now, (uint64_t)bytes);
	pv_virtqueue_push(rng->queue.ring, rng->chain.head, (uint32_t)bytes);
	pv_rng_count(rng, PV_RNG_REQUESTS, 1);
	pv_rng_count(rng, PV_RNG_BYTES, (uint64_t)bytes);
	return true;
}

/* False: there is none that can be answered now. */
static bool serve_one(struct pv_rng *rng, uint64_t now)
{
	struct pv_virtqueue *ring = rng->queue.ring;
	int result = pv_virtqueue_pop(ring, &rng->chain);
	const char *why = result < 0 ? pv_virtqueue_error(ring)
	                : result > 0 ? fault(&rng->chain)
	                             : NULL;

	if (why) {
		break_device(rng, why);
		return false;
	}
	if (result == 0) {
		rng->wait = PV_RNG_KICK;
		return pv_virtqueue_enable_kicks(ring) != 0;
	}
	if (answer(rng, now))
		return true;
	pv_virtqueue_rewind(ring);
	return false;
}

void pv_rng_serve(struct pv_rng *rng, uint64_t now)
{
	struct pv_virtqueue *ring = rng->queue.ring;

	rng->wait = PV_RNG_MORE;
	pv_virtqueue_disable_kicks(ring);
	for (uint32_t i = 0; i < REQUESTS && serve_one(rng, now); i++)
		rng->wait = PV_RNG_MORE;
	pv_virtqueue_publish(ring);
	if (pv_virtqueue_needs_notify(ring)) {
		pv_rng_count(rng, PV_RNG_INTERRUPTS, 1);
		pv_virtio_irq_used(rng->irq);
	}
}
