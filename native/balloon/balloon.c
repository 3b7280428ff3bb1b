#include "balloon/balloon.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "balloon/internal.h"

_Static_assert(sizeof(struct pv_balloon_stats) == PV_BALLOON_COUNTERS * sizeof(uint64_t),
               "same order");

int pv_balloon_new(struct pv_balloon **out)
{
	struct pv_balloon *balloon = calloc(1, sizeof(*balloon));
	int result;

	*out = NULL;
	if (!balloon)
		return -ENOMEM;
	balloon->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (balloon->wake_fd < 0) {
		result = -errno;
		free(balloon);
		return result;
	}
	for (unsigned i = 0; i < PV_BALLOON_TAGS; i++)
		atomic_init(&balloon->values[i], UINT64_MAX);
	*out = balloon;
	return 0;
}

void pv_balloon_free(struct pv_balloon *balloon)
{
	if (!balloon)
		return;
	close(balloon->wake_fd);
	free(balloon);
}

/* Huge pages of hugetlbfs are known by their file; transparent ones can be split. */
static uint64_t host_page(const struct pv_memory *memory)
{
	uint64_t largest = PV_BALLOON_PAGE;
	struct pv_memory_file file;

	for (unsigned i = 0; pv_memory_file(memory, i, &file) == 0; i++) {
		struct statfs fs;

		if (fstatfs(file.fd, &fs) < 0)
			continue;
		if (fs.f_type == HUGETLBFS_MAGIC && (uint64_t)fs.f_bsize > largest)
			largest = (uint64_t)fs.f_bsize;
	}
	return largest;
}

void pv_balloon_begin(struct pv_balloon *balloon, const struct pv_balloon_activation *activation)
{
	const struct pv_queue queues[PV_BALLOON_QUEUES] = {
		[PV_BALLOON_INFLATE] = activation->inflate,
		[PV_BALLOON_DEFLATE] = activation->deflate,
		[PV_BALLOON_REPORT] = activation->reporting,
		[PV_BALLOON_TELL] = activation->statistics,
	};

	for (unsigned i = 0; i < PV_BALLOON_QUEUES; i++)
		balloon->queues[i] = (struct pv_balloon_queue){
			.queue = queues[i],
			.wait = queues[i].ring ? PV_BALLOON_MORE : PV_BALLOON_IDLE,
		};
	balloon->memory = activation->memory;
	balloon->host_page = host_page(activation->memory);
	balloon->irq = activation->irq;
	balloon->keep_reported = activation->keep_reported != 0;
	balloon->notify = balloon->broken = false;
	balloon->asked_at = 0;
}

int pv_balloon_start(struct pv_balloon *balloon, const struct pv_balloon_activation *activation)
{
	int result;

	if (balloon->running)
		return -EBUSY;
	pv_balloon_begin(balloon, activation);
	result = pv_thread_run(&balloon->thread, pv_balloon_run, balloon);
	balloon->running = result == 0;
	return result;
}

int pv_balloon_stop(struct pv_balloon *balloon, uint64_t timeout_ns)
{
	if (!balloon->running)
		return 0;
	pv_thread_ask(&balloon->thread);
	(void)eventfd_write(balloon->wake_fd, 1);
	if (pv_thread_wait(&balloon->thread, pv_deadline(timeout_ns)) < 0)
		return -ETIMEDOUT;
	balloon->running = false;
	return 0;
}

int pv_balloon_drain(struct pv_balloon *balloon, uint64_t timeout_ns)
{
	if (balloon->running &&
	    pv_thread_pause(&balloon->thread, balloon->wake_fd, timeout_ns) < 0)
		return -ETIMEDOUT;
	balloon->running = false;
	return 0;
}

void pv_balloon_poll(struct pv_balloon *balloon, uint64_t interval_ns, uint8_t tell)
{
	atomic_store(&balloon->tell, tell != 0);
	atomic_store(&balloon->interval_ns, interval_ns);
	(void)eventfd_write(balloon->wake_fd, 1);
}

void pv_balloon_stats(const struct pv_balloon *balloon, struct pv_balloon_stats *stats)
{
	uint64_t values[PV_BALLOON_COUNTERS];

	for (uint32_t i = 0; i < PV_BALLOON_COUNTERS; i++)
		values[i] = atomic_load_explicit(&balloon->counters[i], memory_order_relaxed);
	memcpy(stats, values, sizeof(*stats));
}

void pv_balloon_statistics(const struct pv_balloon *balloon,
                           struct pv_balloon_statistics *statistics)
{
	for (uint32_t i = 0; i < PV_BALLOON_TAGS; i++)
		statistics->values[i] =
			atomic_load_explicit(&balloon->values[i], memory_order_relaxed);
	statistics->updated = atomic_load(&balloon->updated);
	statistics->count = atomic_load(&balloon->counters[PV_BALLOON_STATISTICS]);
}
