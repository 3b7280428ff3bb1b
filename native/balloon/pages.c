/* Pages: in and out of the balloon (virtio 1.2, 5.5.6.1), and told to be free (5.5.6.7). What one
 * chain asks for may be more than a turn does; then it stays in the ring, and `done` says how far
 * it got. */
#include <errno.h>
#include <sys/mman.h>

#include "balloon/internal.h"
#include "virtio/iov_internal.h"

#define CHAINS 16                 /* of a queue in a turn */
#define REPORTED_BYTES (16 << 20) /* of a queue in a turn */

/* What of some memory consists of whole pages of a size: 0 bytes, perhaps. */
static uint64_t whole_pages(const void *at, uint64_t bytes, uint64_t size, uint8_t **start)
{
	uintptr_t mask = size - 1, first = ((uintptr_t)at + mask) & ~mask;
	uintptr_t last = ((uintptr_t)at + bytes) & ~mask;

	*start = (uint8_t *)first;
	return last > first ? last - first : 0;
}

/* Give host memory back, whole pages of it. Of a page of hugetlbfs a part cannot go: the kernel
 * would write zeroes there, and keep it. */
static void release(struct pv_balloon *balloon, void *at, uint64_t length)
{
	uint8_t *start;
	uint64_t bytes = whole_pages(at, length, balloon->host_page, &start);
	int result;

	pv_balloon_count(balloon, PV_BALLOON_KEPT, (length - bytes) / PV_BALLOON_PAGE);
	if (bytes == 0)
		return;
	/* Private memory knows no MADV_REMOVE, and says so at once (madvise(2)). */
	result = madvise(start, bytes, MADV_REMOVE);
	if (result < 0 && (errno == EINVAL || errno == EACCES))
		result = madvise(start, bytes, MADV_DONTNEED);
	pv_balloon_count(balloon, PV_BALLOON_RELEASES, 1);
	if (result < 0)
		pv_balloon_count(balloon, PV_BALLOON_KEPT, bytes / PV_BALLOON_PAGE);
	else
		pv_balloon_count(balloon, PV_BALLOON_RELEASED, bytes / PV_BALLOON_PAGE);
}

static void *page_at(const struct pv_balloon *balloon, uint32_t page)
{
	return pv_memory_at(balloon->memory, (uint64_t)page * PV_BALLOON_PAGE, PV_BALLOON_PAGE);
}

/* Let the number at `top` sink to where it belongs in a heap of `count`, the largest first. */
static void sink(uint32_t *pages, uint32_t top, uint32_t count)
{
	for (uint32_t below = 2 * top + 1; below < count; below = 2 * top + 1) {
		uint32_t number = pages[top];

		if (below + 1 < count && pages[below + 1] > pages[below])
			below++;
		if (pages[below] <= number)
			return;
		pages[top] = pages[below];
		pages[below] = number;
		top = below;
	}
}

/* By a heap, in place: qsort(3) asks for memory, and how much of it the host has. */
static void sort(uint32_t *pages, uint32_t count)
{
	for (uint32_t top = count / 2; top-- > 0;)
		sink(pages, top, count);
	for (uint32_t last = count; last-- > 1;) {
		uint32_t largest = pages[0];

		pages[0] = pages[last];
		pages[last] = largest;
		sink(pages, 0, last);
	}
}

/* Pages of the guest lie side by side in the host's memory where they do so in one region. A huge
 * page is free at once when the last piece of it goes, however many calls that takes.
 *
 * A number beyond the guest's memory does no harm and is passed over, as QEMU does: the
 * specification asks nothing of a device then, and the driver waits for its buffer. */
static void release_pages(struct pv_balloon *balloon, uint32_t count)
{
	const uint32_t *pages = balloon->pages;
	uint8_t *start = NULL;
	uint64_t bytes = 0;

	sort(balloon->pages, count);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t *at = page_at(balloon, pages[i]);

		if (!at)
			pv_balloon_count(balloon, PV_BALLOON_REFUSED, 1);
		if (!at || (i > 0 && pages[i] == pages[i - 1]))
			continue;
		if (bytes > 0 && at != start + bytes) {
			release(balloon, start, bytes);
			bytes = 0;
		}
		if (bytes == 0)
			start = at;
		bytes += PV_BALLOON_PAGE;
	}
	if (bytes > 0)
		release(balloon, start, bytes);
}

static void count_pages_out(struct pv_balloon *balloon, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (!page_at(balloon, balloon->pages[i]))
			pv_balloon_count(balloon, PV_BALLOON_REFUSED, 1);
}

/* Go on with a list of page numbers, 32 bits each; true: it is done. */
static bool take_list(struct pv_balloon *balloon, struct pv_balloon_queue *queue, bool inflate)
{
	const struct pv_chain *chain = &balloon->chain;
	size_t bytes = pv_iov_gather(chain->iov, chain->readable, queue->done, balloon->pages,
	                             sizeof(balloon->pages));
	uint32_t count = (uint32_t)(bytes / sizeof(balloon->pages[0]));

	if (inflate)
		release_pages(balloon, count);
	else
		count_pages_out(balloon, count);
	pv_balloon_count(balloon, inflate ? PV_BALLOON_INFLATED : PV_BALLOON_DEFLATED, count);
	queue->done += bytes;
	return queue->done >= chain->readable_bytes;
}

/* Go on with memory that is free; true: it is done. Each segment is one piece, of up to 4 GiB. */
static bool take_report(struct pv_balloon *balloon, struct pv_balloon_queue *queue)
{
	const struct pv_chain *chain = &balloon->chain;
	uint64_t before = 0, left = REPORTED_BYTES;

	for (uint16_t i = 0; i < chain->writable && left > 0; i++) {
		uint64_t length = chain->iov[i].iov_len, skip, bytes;
		uint8_t *start;

		before += length;
		if (queue->done >= before)
			continue;
		/* What was done of it is whole pages, from the first one on. */
		skip = queue->done - (before - length);
		bytes = whole_pages(chain->iov[i].iov_base, length, PV_BALLOON_PAGE, &start);
		bytes = bytes > skip ? bytes - skip : 0;
		if (bytes > left)
			bytes = left;
		if (bytes > 0 && !balloon->keep_reported)
			release(balloon, start + skip, bytes);
		pv_balloon_count(balloon, PV_BALLOON_REPORTED, bytes / PV_BALLOON_PAGE);
		left -= bytes;
		queue->done += bytes;
		if (left > 0)
			queue->done = before;
	}
	return left > 0;
}

/* What a driver may not do; NULL: it is as it should be. */
static const char *fault(const struct pv_chain *chain, unsigned index)
{
	if (index == PV_BALLOON_REPORT)
		return chain->readable > 0 ? "a buffer of free pages that is to be read" : NULL;
	if (chain->writable > 0)
		return "a list of pages that is to be written";
	return chain->readable_bytes % sizeof(uint32_t) ? "a list of pages that ends in half a one"
	                                                : NULL;
}

static bool serve_one(struct pv_balloon *balloon, unsigned index)
{
	struct pv_balloon_queue *queue = &balloon->queues[index];
	const char *why;
	bool done;

	if (!pv_balloon_pop(balloon, queue))
		return false;
	why = fault(&balloon->chain, index);
	if (why) {
		pv_balloon_break(balloon, why);
		return false;
	}
	done = index == PV_BALLOON_REPORT
	               ? take_report(balloon, queue)
	               : take_list(balloon, queue, index == PV_BALLOON_INFLATE);
	if (!done) {
		pv_virtqueue_rewind(queue->queue.ring);
		return false;
	}
	pv_virtqueue_push(queue->queue.ring, balloon->chain.head, 0);
	queue->done = 0;
	return true;
}

void pv_balloon_serve_pages(struct pv_balloon *balloon, unsigned index)
{
	struct pv_virtqueue *ring = balloon->queues[index].queue.ring;

	pv_virtqueue_disable_kicks(ring);
	for (uint32_t i = 0; i < CHAINS && serve_one(balloon, index); i++)
		;
	pv_virtqueue_publish(ring);
	balloon->notify |= pv_virtqueue_needs_notify(ring) != 0;
}
