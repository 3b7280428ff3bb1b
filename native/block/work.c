#include "block/work_internal.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define UNIT 4096 /* the largest alignment */
#define BOUNCE_MAX (256 * 1024)
#define ZEROES_BYTES (64 * 1024)
#define ZEROES_SEGMENTS 16

static const _Alignas(UNIT) uint8_t ZEROES[ZEROES_BYTES];

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static bool is_zero(const struct pv_block_request *r)
{
	for (uint32_t i = 0; i < r->left; i++) {
		const char *data = r->at[i].iov_base;

		if (data[0] != 0 || memcmp(data, data + 1, r->at[i].iov_len - 1) != 0)
			return false;
	}
	return r->length > 0;
}

static bool is_misaligned(const struct pv_block_file *file, const struct pv_block_request *r)
{
	uintptr_t addresses = 0, lengths = 0;

	for (uint32_t i = 0; i < r->left; i++) {
		addresses |= (uintptr_t)r->at[i].iov_base;
		lengths |= r->at[i].iov_len;
	}
	return (addresses & (file->memory_align - 1)) != 0 ||
	       (lengths & (file->offset_align - 1)) != 0;
}

static void advance(struct pv_block_request *r, uint64_t bytes)
{
	r->done += bytes;
	while (bytes > 0) {
		uint64_t part = smaller(bytes, r->at->iov_len);

		r->at->iov_base = (char *)r->at->iov_base + part;
		r->at->iov_len -= part;
		bytes -= part;
		if (r->at->iov_len == 0) {
			r->at++;
			r->left--;
		}
	}
}

void pv_block_prepare(const struct pv_block_file *file, struct pv_block_request *r)
{
	if (r->type == VIRTIO_BLK_T_GET_ID)
		advance(r, pv_block_scatter(r->at, r->left, file->id, sizeof(file->id)));
	/* A driver may know of discards from an image that was there before, and kept no room. */
	if (r->type == VIRTIO_BLK_T_DISCARD && !(file->flags & PV_BLOCK_UNMAP))
		r->ranges = 0;
	if (r->type != VIRTIO_BLK_T_IN && r->type != VIRTIO_BLK_T_OUT)
		return;
	if (r->type == VIRTIO_BLK_T_OUT && file->flags & PV_BLOCK_DETECT_ZEROES && is_zero(r)) {
		r->ranges = 1;
		r->zero[0] = (struct pv_block_range){r->offset, r->length,
		                                     (file->flags & PV_BLOCK_DETECT_UNMAP) != 0};
		return;
	}
	r->misaligned = is_misaligned(file, r);
}

/* `result` is an operation's: an error of the host's, or 0 where more was to be had. */
static bool fail(struct pv_block_request *r, int64_t result)
{
	r->status = VIRTIO_BLK_S_IOERR;
	r->error = result < 0 ? (int)-result : EIO;
	return false;
}

/* Move through aligned units what begins or ends within one: read the units, change them, write
 * them back. Here and now, for no driver that looks at the block size asks for it. */
static bool move_unaligned(struct pv_block_file *file, struct pv_block_request *r)
{
	uint64_t mask = file->offset_align - 1;
	uint64_t at = r->offset + r->done;
	uint64_t start = at & ~mask;
	uint64_t end = smaller((r->offset + r->length + mask) & ~mask, start + BOUNCE_MAX);
	uint64_t bytes = smaller(r->length - r->done, end - at);
	ssize_t size = (ssize_t)(end - start);
	char *data = (char *)r->bounce + (at - start);

	if (pread(file->fd, r->bounce, (size_t)size, (off_t)start) != size)
		return false;
	if (r->type == VIRTIO_BLK_T_IN) {
		pv_block_scatter(r->at, r->left, data, bytes);
	} else {
		pv_block_gather(r->at, r->left, data, bytes);
		if (pwrite(file->fd, r->bounce, (size_t)size, (off_t)start) != size)
			return false;
	}
	advance(r, bytes);
	return true;
}

static bool next_unaligned(struct pv_block_file *file, struct pv_block_request *r)
{
	bool moved = true;

	pthread_mutex_lock(&file->lock);
	while (moved && r->done < r->length)
		moved = move_unaligned(file, r);
	pthread_mutex_unlock(&file->lock);
	return moved ? false : fail(r, 0);
}

static bool next_bounced(struct pv_block_request *r)
{
	r->other = (struct iovec){r->bounce, smaller(r->length - r->done, BOUNCE_MAX)};
	if (r->type == VIRTIO_BLK_T_OUT)
		pv_block_gather(r->at, r->left, r->bounce, r->other.iov_len);
	r->io.iov = &r->other;
	r->io.count = 1;
	return true;
}

static bool next_transfer(struct pv_block_file *file, struct pv_block_request *r)
{
	bool unaligned = ((r->offset | r->length) & (file->offset_align - 1)) != 0;

	if (r->done == r->length)
		return false;
	if (!r->bounce && (unaligned || r->misaligned)) {
		r->bounce = aligned_alloc(UNIT, BOUNCE_MAX);
		if (!r->bounce)
			return fail(r, -ENOMEM);
	}
	if (unaligned)
		return next_unaligned(file, r);
	r->io.kind = r->type == VIRTIO_BLK_T_IN ? PV_IO_READ : PV_IO_WRITE;
	r->io.offset = r->offset + r->done;
	r->io.cached = file->cached;
	if (r->misaligned)
		return next_bounced(r);
	r->io.iov = r->at;
	r->io.count = r->left;
	return true;
}

/* `iov` is free: what was in it has been read. */
static void write_zeroes(struct pv_block_request *r)
{
	uint64_t left = r->io.length;

	r->io.kind = PV_IO_WRITE;
	r->io.iov = r->iov;
	for (r->io.count = 0; left > 0 && r->io.count < ZEROES_SEGMENTS; r->io.count++) {
		uint64_t part = smaller(left, ZEROES_BYTES);

		r->iov[r->io.count] = (struct iovec){(void *)(uintptr_t)ZEROES, part};
		left -= part;
	}
}

static bool next_range(const struct pv_block_file *file, struct pv_block_request *r)
{
	const struct pv_block_range *range = &r->zero[r->range];

	if (r->range == r->ranges)
		return false;
	r->io.offset = range->offset + r->done;
	r->io.length = range->length - r->done;
	r->io.kind = range->punch && (file->flags & PV_BLOCK_UNMAP) ? PV_IO_PUNCH : PV_IO_ZERO;
	if (r->by_hand)
		write_zeroes(r);
	return true;
}

static bool next_sync(const struct pv_block_file *file, struct pv_block_request *r)
{
	bool changes = r->ranges > 0 || r->type == VIRTIO_BLK_T_OUT;

	if (r->synced || !(r->type == VIRTIO_BLK_T_FLUSH || (changes && file->write_through)))
		return false;
	r->io.kind = PV_IO_SYNC;
	return true;
}

bool pv_block_next(struct pv_block_file *file, struct pv_block_request *r)
{
	bool more = false;

	if (r->status == VIRTIO_BLK_S_OK && r->ranges > 0)
		more = next_range(file, r);
	else if (r->status == VIRTIO_BLK_S_OK &&
	         (r->type == VIRTIO_BLK_T_IN || r->type == VIRTIO_BLK_T_OUT))
		more = next_transfer(file, r);
	if (!more && r->status == VIRTIO_BLK_S_OK)
		more = next_sync(file, r);
	if (!more) {
		pv_block_clear_rest(r);
		free(r->bounce);
		r->bounce = NULL;
	}
	return more;
}

/* What fallocate(2) says of a file, file system or kernel that cannot do it. */
static bool is_unable(const struct pv_io *io)
{
	return io->kind != PV_IO_WRITE &&
	       (io->result == -EOPNOTSUPP || io->result == -ENODEV || io->result == -ENOSYS);
}

static void absorb_range(struct pv_block_request *r)
{
	uint64_t length = r->zero[r->range].length;

	if (is_unable(&r->io)) {
		/* A discard asks for nothing that must happen. */
		r->by_hand = r->type != VIRTIO_BLK_T_DISCARD;
		r->done = r->by_hand ? 0 : length;
	} else if (r->io.result < 0 || (r->io.kind == PV_IO_WRITE && r->io.result == 0)) {
		fail(r, r->io.result);
	} else {
		r->done += r->io.kind == PV_IO_WRITE ? (uint64_t)r->io.result : r->io.length;
	}
	if (r->done == length) {
		r->done = 0;
		r->range++;
	}
}

static void absorb_transfer(struct pv_block_request *r)
{
	if (r->io.result <= 0) {
		fail(r, r->io.result); /* 0: the file has become shorter */
		return;
	}
	if (r->misaligned && r->type == VIRTIO_BLK_T_IN)
		pv_block_scatter(r->at, r->left, r->bounce, (uint64_t)r->io.result);
	advance(r, (uint64_t)r->io.result);
}

void pv_block_absorb(struct pv_block_request *r)
{
	if (r->io.result == -EINTR || r->io.result == -EAGAIN)
		return;
	if (r->io.kind == PV_IO_SYNC) {
		r->synced = true;
		if (r->io.result < 0)
			fail(r, r->io.result);
	} else if (r->ranges > 0) {
		absorb_range(r);
	} else {
		absorb_transfer(r);
	}
}
