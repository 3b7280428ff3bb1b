#include "block/overlay_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "iothread/io_internal.h"

#define SECTOR PV_OVERLAY_SECTOR
#define WORD UINT64_C(64) /* bits */
#define PAGE PV_OVERLAY_PAGE
#define PAGE_SECTORS (8 * PAGE)
#define SECTORS_MAX (UINT64_MAX / SECTOR / 2)

/* Of a file that is complete: the last of it, behind the map. */
struct trailer {
	char magic[16];
	uint64_t version;
	uint64_t sectors;
	uint8_t mark[PV_OVERLAY_MARK]; /* of whom it belongs to; theirs to look at */
};

_Static_assert(PV_OVERLAY_SPAN == PAGE_SECTORS * SECTOR, "a page of the map");

static const struct trailer TRAILER = {"pyvirt-overlay", 1, 0, {0}};

static uint64_t whole(uint64_t count, uint64_t unit)
{
	return (count + unit - 1) / unit;
}

/* So many bytes of zeroes that take room only where they are written to. */
static void *make_sparse(size_t bytes)
{
	void *made = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
	                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (made == MAP_FAILED)
		return NULL;
	(void)madvise(made, bytes, MADV_NOHUGEPAGE);
	return made;
}

static int make(int fd, uint64_t sectors, const struct pv_overlay *below, struct pv_overlay **out)
{
	struct pv_overlay *o;

	*out = NULL;
	if (sectors == 0 || sectors > SECTORS_MAX)
		return -EINVAL;
	o = calloc(1, sizeof(*o));
	if (!o)
		return -ENOMEM;
	o->fd = fd;
	o->below = below;
	o->sectors = sectors;
	o->map_bytes = whole(sectors, PAGE_SECTORS) * PAGE;
	o->touched_words = whole(o->map_bytes / PAGE, WORD);
	o->map = make_sparse(o->map_bytes);
	o->touched = calloc(o->touched_words, sizeof(o->touched[0]));
	if (!o->map || !o->touched) {
		pv_overlay_free(o);
		return -ENOMEM;
	}
	*out = o;
	return 0;
}

/* Only files in memory have seals. */
static void look_at_file(struct pv_overlay *o)
{
	o->in_memory = fcntl(o->fd, F_GET_SEALS) >= 0;
	o->cached = pv_io_is_cached(o->fd);
}

int pv_overlay_new(int fd, uint64_t sectors, const struct pv_overlay *below,
                   struct pv_overlay **out)
{
	int result = make(fd, sectors, below, out);

	if (result < 0)
		return result;
	if (ftruncate(fd, (off_t)(sectors * SECTOR)) < 0) {
		result = -errno;
		pv_overlay_free(*out);
		*out = NULL;
		return result;
	}
	look_at_file(*out);
	return 0;
}

void pv_overlay_free(struct pv_overlay *o)
{
	if (!o)
		return;
	if (o->map)
		(void)munmap((void *)o->map, o->map_bytes);
	free((void *)o->touched);
	free(o);
}

uint64_t pv_overlay_bytes(const struct pv_overlay *o)
{
	struct stat status;

	return fstat(o->fd, &status) < 0 ? 0 : (uint64_t)status.st_blocks * SECTOR;
}

int pv_overlay_is_empty(const struct pv_overlay *o)
{
	for (size_t i = 0; i < o->touched_words; i++)
		if (o->touched[i])
			return 0;
	return 1;
}

static void touch(struct pv_overlay *o, uint64_t page)
{
	_Atomic uint64_t *word = &o->touched[page / WORD];
	uint64_t bit = UINT64_C(1) << page % WORD;

	if ((atomic_load_explicit(word, memory_order_relaxed) & bit) == 0)
		atomic_fetch_or(word, bit);
}

void pv_overlay_mark(struct pv_overlay *o, uint64_t start, uint64_t end)
{
	uint64_t at = start / SECTOR, last = end / SECTOR;

	while (at < last) {
		uint64_t first = at % WORD, count = pv_smaller(WORD - first, last - at);
		_Atomic uint64_t *word = &o->map[at / WORD];
		uint64_t bits = UINT64_MAX >> (WORD - count) << first;

		touch(o, at / PAGE_SECTORS);
		if ((atomic_load_explicit(word, memory_order_relaxed) & bits) != bits)
			atomic_fetch_or(word, bits);
		at += count;
	}
}

/* How many sectors from `at` on, `most` at most, are in the layer if the first one is, or not if
 * that is not. */
static uint64_t run_from(const struct pv_overlay *o, uint64_t at, uint64_t most, bool *is_here)
{
	uint64_t index = at / WORD, run = WORD - at % WORD;
	uint64_t word = atomic_load_explicit(&o->map[index], memory_order_acquire);
	uint64_t same, others;

	*is_here = (word >> at % WORD & 1) != 0;
	same = *is_here ? UINT64_MAX : 0;
	others = (word ^ same) >> at % WORD;
	if (others)
		return pv_smaller((uint64_t)__builtin_ctzll(others), most);
	for (; run < most; run += WORD) {
		others = atomic_load_explicit(&o->map[++index], memory_order_acquire) ^ same;
		if (others)
			return pv_smaller(run + (uint64_t)__builtin_ctzll(others), most);
	}
	return pv_smaller(run, most);
}

const struct pv_overlay *pv_overlay_find(const struct pv_overlay *o, uint64_t offset,
                                         uint64_t *length)
{
	uint64_t at = offset / SECTOR, most = whole(offset % SECTOR + *length, SECTOR);
	bool is_here = false;

	for (; o && !is_here; o = is_here ? o : o->below)
		most = run_from(o, at, most, &is_here);
	*length = pv_smaller(*length, most * SECTOR - offset % SECTOR);
	return o;
}

bool pv_overlay_has(const struct pv_overlay *o, uint64_t page)
{
	return (o->touched[page / WORD] >> page % WORD & 1) != 0;
}

int pv_overlay_write(int fd, const void *data, size_t size, uint64_t at)
{
	const char *from = data;

	while (size > 0) {
		int64_t done = pv_io_write(fd, from, size, at);

		if (done <= 0)
			return done < 0 ? (int)done : -EIO;
		from += done;
		size -= (size_t)done;
		at += (uint64_t)done;
	}
	return 0;
}

static int read_all(int fd, void *data, size_t size, uint64_t at)
{
	char *to = data;

	while (size > 0) {
		int64_t done = pv_io_read(fd, to, size, at);

		if (done <= 0)
			return done < 0 ? (int)done : -EINVAL;
		to += done;
		size -= (size_t)done;
		at += (uint64_t)done;
	}
	return 0;
}

int pv_overlay_complete(const struct pv_overlay *o, int fd, const uint8_t *mark)
{
	struct trailer trailer = TRAILER;

	trailer.sectors = o->sectors;
	memcpy(trailer.mark, mark, sizeof(trailer.mark));
	return pv_overlay_write(fd, &trailer, sizeof(trailer), o->sectors * SECTOR + o->map_bytes);
}

int pv_overlay_freeze(struct pv_overlay *o)
{
	static const uint8_t nobody[PV_OVERLAY_MARK];
	uint64_t start = o->sectors * SECTOR;
	int result = 0;

	for (uint64_t page = 0; result == 0 && page < o->map_bytes / PAGE; page++)
		if (pv_overlay_has(o, page))
			result = pv_overlay_write(o->fd, (char *)o->map + page * PAGE, PAGE,
			                          start + page * PAGE);
	return result == 0 ? pv_overlay_complete(o, o->fd, nobody) : result;
}

/* Read the map, the parts of it that are there. */
static int read_map(struct pv_overlay *o)
{
	uint64_t start = o->sectors * SECTOR, end = start + o->map_bytes, at = start;
	int result = 0;

	while (result == 0 && at < end) {
		off_t data = lseek(o->fd, (off_t)at, SEEK_DATA);
		uint64_t page;

		if (data < 0)
			return errno == ENXIO ? 0 : -errno;
		page = ((uint64_t)data - start) / PAGE;
		at = start + page * PAGE;
		if (at >= end)
			return 0;
		result = read_all(o->fd, (char *)o->map + page * PAGE, PAGE, at);
		touch(o, page);
		at += PAGE;
	}
	return result;
}

int pv_overlay_thaw(int fd, uint64_t sectors, const struct pv_overlay *below,
                    struct pv_overlay **out)
{
	struct trailer trailer;
	struct stat status;
	struct pv_overlay *o;
	int result = make(fd, sectors, below, &o);

	*out = NULL;
	if (result < 0)
		return result;
	if (fstat(fd, &status) < 0)
		result = -errno;
	else if ((uint64_t)status.st_size != sectors * SECTOR + o->map_bytes + sizeof(trailer))
		result = -EINVAL;
	else
		result = read_all(fd, &trailer, sizeof(trailer), sectors * SECTOR + o->map_bytes);
	if (result == 0 && (memcmp(trailer.magic, TRAILER.magic, sizeof(trailer.magic)) != 0 ||
	                    trailer.version != TRAILER.version || trailer.sectors != sectors))
		result = -EINVAL;
	if (result == 0)
		result = read_map(o);
	if (result < 0) {
		pv_overlay_free(o);
		return result;
	}
	look_at_file(o);
	*out = o;
	return 0;
}
