/* The thread of a balloon device. */
#include <poll.h>
#include <sys/eventfd.h>

#include "balloon/internal.h"
#include "sandbox/filter.h"
#include "virtio/irq.h"

#define NS_PER_S 1000000000

void pv_balloon_serve(struct pv_balloon *balloon, uint64_t now)
{
	for (unsigned i = 0; i < PV_BALLOON_TELL && !balloon->broken; i++)
		if (balloon->queues[i].wait == PV_BALLOON_MORE)
			pv_balloon_serve_pages(balloon, i);
	if (!balloon->broken)
		pv_balloon_serve_statistics(balloon, now);
	if (balloon->notify) {
		balloon->notify = false;
		pv_balloon_count(balloon, PV_BALLOON_INTERRUPTS, 1);
		pv_virtio_irq_used(balloon->irq);
	}
}

/* Nanoseconds to wait at most, or -1. */
static int64_t patience(const struct pv_balloon *balloon)
{
	uint64_t interval = atomic_load(&balloon->interval_ns), now, until;

	if (balloon->broken)
		return -1;
	for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++)
		if (balloon->queues[i].wait == PV_BALLOON_MORE)
			return 0;
	if (balloon->queues[PV_BALLOON_TELL].wait != PV_BALLOON_TIME || interval == 0)
		return -1;
	now = pv_now_ns();
	until = balloon->asked_at + interval;
	return until > now ? (int64_t)(until - now) : 0;
}

/* A broken device waits for its end alone. */
static void wait(struct pv_balloon *balloon)
{
	int64_t timeout = patience(balloon);
	struct timespec time = {.tv_sec = timeout / NS_PER_S, .tv_nsec = timeout % NS_PER_S};
	struct pollfd fds[PV_BALLOON_QUEUES + 1];
	eventfd_t value;

	for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++) {
		const struct pv_balloon_queue *queue = &balloon->queues[i];
		bool waits = queue->wait == PV_BALLOON_KICK && !balloon->broken;

		fds[i] = (struct pollfd){.fd = waits ? queue->queue.kick_fd : -1, .events = POLLIN};
	}
	fds[PV_BALLOON_QUEUES] = (struct pollfd){.fd = balloon->wake_fd, .events = POLLIN};
	(void)ppoll(fds, PV_BALLOON_QUEUES + 1, timeout < 0 ? NULL : &time, NULL);
	if (fds[PV_BALLOON_QUEUES].revents & POLLIN)
		(void)eventfd_read(balloon->wake_fd, &value);
	for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++) {
		if (!(fds[i].revents & POLLIN))
			continue;
		(void)eventfd_read(fds[i].fd, &value);
		pv_balloon_count(balloon, PV_BALLOON_KICKS, 1);
		balloon->queues[i].wait = PV_BALLOON_MORE;
	}
}

void *pv_balloon_run(void *device)
{
	struct pv_balloon *balloon = device;

	pv_thread_is(PV_SANDBOX_BALLOON, "balloon", pv_virtio_irq_name(balloon->irq));
	while (!pv_thread_is_to_end(&balloon->thread)) {
		if (!balloon->broken)
			pv_balloon_serve(balloon, pv_now_ns());
		wait(balloon);
	}
	return NULL;
}
