#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/block.h"

#define SMALLEST 512
#define LARGEST 4096

static int is_good(uint32_t align)
{
	return align > 0 && align <= LARGEST && (align & (align - 1)) == 0;
}

/* Read so many bytes to an address that is a multiple of no more than `memory_align`. */
static int reads(int fd, char *room, uint32_t bytes, uint32_t memory_align)
{
	return pread(fd, room + memory_align % LARGEST, bytes, 0) >= 0;
}

/* Block sizes are powers of two from 512 on. */
static int probe(int fd, char *room, uint32_t *offset_align, uint32_t *memory_align)
{
	uint32_t offset = SMALLEST, memory = SMALLEST;

	while (!reads(fd, room, offset, LARGEST))
		if ((offset *= 2) > LARGEST)
			return -EINVAL;
	while (!reads(fd, room, offset, memory))
		memory *= 2;
	*offset_align = offset;
	*memory_align = memory;
	return 0;
}

int pv_block_alignment(int fd, uint32_t *offset_align, uint32_t *memory_align)
{
	struct statx status;
	char *room;
	int result;

#ifdef STATX_DIOALIGN
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
	    (status.stx_mask & STATX_DIOALIGN) && is_good(status.stx_dio_offset_align) &&
	    is_good(status.stx_dio_mem_align)) {
		*offset_align = status.stx_dio_offset_align;
		*memory_align = status.stx_dio_mem_align;
		return 0;
	}
#endif
	room = aligned_alloc(LARGEST, 2 * LARGEST);
	if (!room)
		return -ENOMEM;
	result = probe(fd, room, offset_align, memory_align);
	free(room);
	return result;
}
