/* Guest memory that is made of several files, each with some of its pages. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vcpu/memory.h"

#define PAGE ((uint64_t)4096)
#define LENGTHS 64 /* of runs, by their powers of two */

struct run {
	uint64_t first; /* pages */
	uint64_t count;
};

static bool is_set(const uint8_t *own, uint64_t page)
{
	return (own[page / 8] >> page % 8 & 1) != 0;
}

/* The next run from its own end on; false: there is none. */
static bool next_run(const uint8_t *own, uint64_t pages, struct run *run)
{
	uint64_t at = run->first + run->count;

	while (at < pages && !is_set(own, at))
		at += at % 8 == 0 && own[at / 8] == 0 ? 8 : 1;
	run->first = at;
	while (at < pages && is_set(own, at))
		at += at % 8 == 0 && own[at / 8] == UINT8_MAX && at + 8 <= pages ? 8 : 1;
	run->count = at - run->first;
	return run->count > 0;
}

/* From how many pages on runs are mapped, if these are to be `maps` at most. */
static uint64_t least_mapped(const uint8_t *own, uint64_t pages, uint32_t maps)
{
	uint64_t counts[LENGTHS] = {0}, sum = 0;
	struct run run = {0, 0};
	int power = LENGTHS;

	while (next_run(own, pages, &run))
		counts[LENGTHS - 1 - __builtin_clzll(run.count)]++;
	while (power > 0 && sum + counts[power - 1] <= maps)
		sum += counts[--power];
	return power < LENGTHS ? (uint64_t)1 << power : UINT64_MAX;
}

static int read_run(uint8_t *start, int fd, const struct run *run)
{
	uint64_t at = run->first * PAGE, end = at + run->count * PAGE;

	while (at < end) {
		ssize_t done = pread(fd, start + at, end - at, (off_t)at);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EIO;
		at += (uint64_t)done;
	}
	return 0;
}

static int map_run(uint8_t *start, int fd, const struct run *run)
{
	uint8_t *where = start + run->first * PAGE;
	const int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
	void *made = mmap(where, run->count * PAGE, PROT_READ | PROT_WRITE, flags, fd,
	                  (off_t)(run->first * PAGE));

	return made == MAP_FAILED ? -errno : 0;
}

int pv_memory_put(void *start, uint64_t size, int fd, const uint8_t *own, uint32_t maps)
{
	uint64_t pages = size / PAGE, least = maps ? least_mapped(own, pages, maps) : UINT64_MAX;
	struct run run = {0, 0};
	int err = 0;

	while (!err && next_run(own, pages, &run))
		err = run.count >= least ? map_run(start, fd, &run) : read_run(start, fd, &run);
	return err;
}
