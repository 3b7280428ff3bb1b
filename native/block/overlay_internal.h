/* Where a disk's sectors are. */
#ifndef PV_BLOCK_OVERLAY_INTERNAL_H
#define PV_BLOCK_OVERLAY_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "block/overlay.h"

#define PV_OVERLAY_SECTOR UINT64_C(512)
#define PV_OVERLAY_PAGE UINT64_C(4096) /* of the map, bytes; a bit for each sector */

static inline uint64_t pv_smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

struct pv_overlay {
	const struct pv_overlay *below;
	int fd;
	bool in_memory; /* as a memfd is: moved at once, and with nothing to bring to a disk */
	bool cached; /* see struct pv_io */
	uint64_t sectors;
	size_t map_bytes;          /* whole pages */
	_Atomic uint64_t *map;     /* a bit for each sector that is in the file; sparse */
	size_t touched_words;
	_Atomic uint64_t *touched; /* a bit for each page of the map that is not all zeroes */
};

/* The newest layer that has the byte at `offset`, or NULL: the image has it. `length`, not 0, is cut
 * to as many bytes from there on as are in the same one. All of them are on the disk. */
const struct pv_overlay *pv_overlay_find(const struct pv_overlay *top, uint64_t offset,
                                         uint64_t *length);

/* The bytes from `start` to `end` have been written to the file: from now on they are read from
 * there. A sector of which they are a part is not, the first one apart, that `start` is in and the
 * beginning of which was written before. Any thread. */
void pv_overlay_mark(struct pv_overlay *overlay, uint64_t start, uint64_t end);

/* Whether some bits of a page of its map are set. */
bool pv_overlay_has(const struct pv_overlay *overlay, uint64_t page);

/* Write all of `data`; what pwrite(2) says. */
int pv_overlay_write(int fd, const void *data, size_t size, uint64_t at);

#endif
