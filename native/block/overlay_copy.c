/* Layers of a disk, made one in a file that others can begin with. */
#include <errno.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "block/overlay_internal.h"

#define SECTOR PV_OVERLAY_SECTOR
#define PAGE PV_OVERLAY_PAGE
#define WORDS (PAGE / sizeof(uint64_t))

static int send_all(int to, int from, uint64_t at, uint64_t end)
{
	off_t place = (off_t)at;

	if (lseek(to, place, SEEK_SET) < 0)
		return -errno;
	while ((uint64_t)place < end) {
		ssize_t done = sendfile(to, from, &place, end - (uint64_t)place);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EIO;
	}
	return 0;
}

/* Copy what a file has there; holes, of written zeroes, stay some. */
static int copy_data(int to, int from, uint64_t at, uint64_t end, uint64_t *written)
{
	while (at < end) {
		off_t data = lseek(from, (off_t)at, SEEK_DATA), hole;
		uint64_t until;
		int result;

		if (data < 0)
			return errno == ENXIO ? 0 : -errno;
		if ((uint64_t)data >= end)
			return 0;
		hole = lseek(from, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		until = pv_smaller((uint64_t)hole, end);
		result = send_all(to, from, (uint64_t)data, until);
		if (result < 0)
			return result;
		*written += until - (uint64_t)data;
		at = until;
	}
	return 0;
}

static int copy_span(const struct pv_overlay *top, int fd, uint64_t at, uint64_t end,
                     uint64_t *written)
{
	while (at < end) {
		uint64_t length = end - at;
		const struct pv_overlay *o = pv_overlay_find(top, at, &length);
		int result = o ? copy_data(fd, o->fd, at, at + length, written) : 0;

		if (result < 0)
			return result;
		at += length;
	}
	return 0;
}

static int copy_map(const struct pv_overlay *top, int fd, uint64_t page)
{
	uint64_t words[WORDS] = {0};

	for (const struct pv_overlay *o = top; o; o = o->below)
		for (uint64_t i = 0; i < WORDS; i++)
			words[i] |= atomic_load_explicit(&o->map[page * WORDS + i],
			                                 memory_order_acquire);
	return pv_overlay_write(fd, words, PAGE, top->sectors * SECTOR + page * PAGE);
}

static bool is_in_any(const struct pv_overlay *o, uint64_t page)
{
	while (o && !pv_overlay_has(o, page))
		o = o->below;
	return o != NULL;
}

int pv_overlay_copy(const struct pv_overlay *top, int fd, uint64_t start, uint64_t end,
                    uint64_t *written)
{
	uint64_t size = top->sectors * SECTOR;

	for (uint64_t at = start; at < pv_smaller(end, size); at += PV_OVERLAY_SPAN) {
		uint64_t page = at / PV_OVERLAY_SPAN;
		int result;

		if (!is_in_any(top, page))
			continue;
		result = copy_span(top, fd, at, pv_smaller(at + PV_OVERLAY_SPAN, size), written);
		if (result == 0)
			result = copy_map(top, fd, page);
		if (result < 0)
			return result;
	}
	return 0;
}
