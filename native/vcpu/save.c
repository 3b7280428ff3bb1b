#include "vcpu/memory.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define PAGE ((uint64_t)4096)
#define WINDOW 4096 /* pages that are looked up at a time */

/* Of an entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst). */
#define THERE ((uint64_t)1 << 63 | (uint64_t)1 << 62) /* present, or swapped out */
#define OF_FILE ((uint64_t)1 << 61)                   /* and not a copy that was written to */

struct save {
	const uint8_t *start;
	int fd;
	uint64_t offset;
	uint64_t written;
	uint8_t *own; /* a bit for each page that is only ours, and only those are written; or NULL */
	bool was_zero; /* before: a page of zeroes is none of those */
};

static bool is_zero(const uint8_t *page)
{
	for (uint64_t at = 0; at < PAGE; at += 64) {
		uint64_t words[8];

		memcpy(words, page + at, sizeof(words));
		if (words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7])
			return false;
	}
	return true;
}

static int write_all(struct save *save, uint64_t at, uint64_t size)
{
	while (size > 0) {
		ssize_t done = pwrite(save->fd, save->start + at, size, (off_t)(save->offset + at));

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EIO;
		at += (uint64_t)done;
		size -= (uint64_t)done;
		save->written += (uint64_t)done;
	}
	return 0;
}

/* Fill `entries` for pages from `start` on; without a pagemap, or its answer, they count as there,
 * and false is returned. */
static bool look_up(int pagemap, const uint8_t *start, uint64_t pages, uint64_t *entries)
{
	size_t size = pages * sizeof(*entries);
	off_t at = (off_t)((uintptr_t)start / PAGE * sizeof(*entries));

	if (pagemap >= 0 && pread(pagemap, entries, size, at) == (ssize_t)size)
		return true;
	memset(entries, 0xff, size);
	return false;
}

/* Whether a page is to be written. */
static bool is_due(const struct save *save, uint64_t at, uint64_t entry)
{
	bool due;

	if ((entry & THERE) == 0 || (save->own && (entry & OF_FILE) != 0))
		return false;
	due = !is_zero(save->start + at);
	if (save->own && (due || !save->was_zero))
		save->own[at / PAGE / 8] |= (uint8_t)(1U << at / PAGE % 8);
	return due;
}

/* Write the runs of pages that are not zero among `pages` of them at `at`. */
static int save_window(struct save *save, uint64_t at, uint64_t pages, const uint64_t *entries)
{
	uint64_t run = 0;
	int err;

	for (uint64_t i = 0; i < pages; i++, at += PAGE) {
		if (is_due(save, at, entries[i])) {
			run += PAGE;
			continue;
		}
		err = write_all(save, at - run, run);
		if (err)
			return err;
		run = 0;
	}
	return write_all(save, at - run, run);
}

static int save_all(struct save *save, uint64_t size, int pagemap, uint64_t *written)
{
	uint64_t entries[WINDOW];
	int err = 0;

	for (uint64_t at = 0; at < size && !err; at += WINDOW * PAGE) {
		uint64_t pages = (size - at) / PAGE;

		if (pages > WINDOW)
			pages = WINDOW;
		if (!look_up(pagemap, save->start + at, pages, entries) && save->own)
			err = -ENODATA;
		else
			err = save_window(save, at, pages, entries);
	}
	*written += save->written;
	return err;
}

int pv_memory_save(const void *start, uint64_t size, int fd, uint64_t offset, int pagemap,
                   uint64_t *written)
{
	struct save save = {.start = start, .fd = fd, .offset = offset};

	return save_all(&save, size, pagemap, written);
}

int pv_memory_save_own(const void *start, uint64_t size, int fd, uint64_t offset, int pagemap,
                       int was_zero, uint8_t *own, uint64_t *written)
{
	struct save save = {.start = start,
	                    .fd = fd,
	                    .offset = offset,
	                    .own = own,
	                    .was_zero = was_zero != 0};

	return save_all(&save, size, pagemap, written);
}
