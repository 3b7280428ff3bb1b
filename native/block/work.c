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
#define OPERATION_BYTES (4 * 1024 * 1024) /* at most, so that none lasts for long */
#define HERE_BYTES (64 * 1024) /* are moved in memory sooner than somebody else is told to */

static const _Alignas(UNIT) uint8_t ZEROES[ZEROES_BYTES];

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static bool is_zero(const struct pv_block_request *r)
{
	if (r->length == 0 || r->length > OPERATION_BYTES)
		return false;
	for (uint32_t i = 0; i < r->left; i++) {
		const char *data = r->at[i].iov_base;

		if (data[0] != 0 || memcmp(data, data + 1, r->at[i].iov_len - 1) != 0)
			return false;
	}
	return true;
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

/* In what units that which is written to can be: an overlay always goes through the page cache. */
static uint32_t unit_of_changes(const struct pv_block_file *file)
{
	return file->overlay ? 1 : file->offset_align;
}

/* Of what is to be discarded; the rest of it may stay. */
static void keep_whole_units(const struct pv_block_file *file, struct pv_block_request *r)
{
	uint64_t mask = unit_of_changes(file) - 1;
	uint32_t kept = 0;

	/* A driver may know of discards from an image that was there before, and kept no room. */
	for (uint32_t i = 0; i < r->ranges && file->flags & PV_BLOCK_UNMAP; i++) {
		struct pv_block_range range = r->zero[i];
		uint64_t start = (range.offset + mask) & ~mask;
		uint64_t end = (range.offset + range.length) & ~mask;

		if (start < end)
			r->zero[kept++] = (struct pv_block_range){start, end - start, range.punch};
	}
	r->ranges = kept;
}

void pv_block_prepare(const struct pv_block_file *file, struct pv_block_request *r)
{
	if (r->type == VIRTIO_BLK_T_GET_ID)
		advance(r, pv_block_scatter(r->at, r->left, file->id, sizeof(file->id)));
	if (r->type == VIRTIO_BLK_T_DISCARD)
		keep_whole_units(file, r);
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

static bool has_bounce(struct pv_block_request *r)
{
	if (!r->bounce)
		r->bounce = aligned_alloc(UNIT, BOUNCE_MAX);
	return r->bounce != NULL;
}

static bool is_partial(uint32_t unit, uint64_t offset, uint64_t length)
{
	return ((offset | length) & (unit - 1)) != 0;
}

static int read_unit(const struct pv_block_file *file, void *room, uint64_t offset)
{
	int64_t got = pv_io_read(file->fd, room, file->offset_align, offset);

	if (got < 0)
		return (int)got;
	return got == (int64_t)file->offset_align ? 0 : -EIO;
}

/* Write `bytes` from `at` on through the aligned units that they are in: what of the first and the
 * last unit is not to change is read before. The data come from the request, or are zeroes. `lock`
 * is held. Here and now, for drivers that heed the physical block size ask for little of it. */
static int write_within(const struct pv_block_file *file, const struct pv_block_request *r,
                        uint64_t at, uint64_t bytes, bool zeroes)
{
	uint64_t unit = file->offset_align, end = at + bytes;
	uint64_t first = at & ~(unit - 1), last = (end - 1) & ~(unit - 1);
	size_t size = last + unit - first;
	char *room = r->bounce;
	int result = 0;
	int64_t done;

	if (at != first || end < first + unit)
		result = read_unit(file, room, first);
	if (result == 0 && last != first && end != last + unit)
		result = read_unit(file, room + (last - first), last);
	if (result < 0)
		return result;
	if (zeroes)
		memset(room + (at - first), 0, bytes);
	else
		pv_block_gather(r->at, r->left, room + (at - first), bytes);
	done = pv_io_write(file->fd, room, size, first);
	if (done < 0)
		return (int)done;
	return done == (int64_t)size ? 0 : -EIO;
}

/* Write what the bounce buffer holds all of, and of a larger request the unit that it begins
 * within; units that are to be written as wholes are left. */
static int write_edges(struct pv_block_file *file, struct pv_block_request *r)
{
	uint64_t unit = file->offset_align;
	int result = 0;

	while (result == 0 && r->done < r->length) {
		uint64_t at = r->offset + r->done, left = r->length - r->done;
		uint64_t within = at & (unit - 1);
		uint64_t bytes = within + left <= BOUNCE_MAX ? left : unit - within;

		if (bytes == unit && within == 0)
			break;
		pthread_mutex_lock(&file->lock);
		result = write_within(file, r, at, bytes, false);
		pthread_mutex_unlock(&file->lock);
		if (result == 0)
			advance(r, bytes);
	}
	return result;
}

/* Move what is wanted, or a part of it, through the aligned buffer; of a read all of the units that
 * it is in, of a write those that it fills. */
static bool next_bounced(const struct pv_block_file *file, struct pv_block_request *r)
{
	uint64_t mask = file->offset_align - 1;
	uint64_t end = r->io.offset + r->wanted;

	r->bounced = true;
	end = (r->type == VIRTIO_BLK_T_IN ? end + mask : end) & ~mask;
	r->io.offset &= ~mask;
	r->other = (struct iovec){r->bounce, smaller(end - r->io.offset, BOUNCE_MAX)};
	if (r->type == VIRTIO_BLK_T_OUT)
		pv_block_gather(r->at, r->left, r->bounce, r->other.iov_len);
	r->io.iov = &r->other;
	r->io.count = 1;
	return true;
}

/* As many as make an operation of at most `most` bytes. */
static void next_segments(struct pv_block_request *r, uint64_t most)
{
	uint64_t bytes = 0;

	r->bounced = false;
	r->io.iov = r->at;
	r->io.count = r->left;
	if (r->length - r->done <= most)
		return;
	for (r->io.count = 0; bytes + r->at[r->io.count].iov_len <= most; r->io.count++)
		bytes += r->at[r->io.count].iov_len;
	if (r->io.count == 0) {
		r->other = (struct iovec){r->at->iov_base, most};
		r->io.iov = &r->other;
		r->io.count = 1;
	}
}

/* With an overlay: write to that; read what is next in one file. */
static bool next_in_layers(const struct pv_block_file *file, struct pv_block_request *r)
{
	const struct pv_overlay *layer = file->overlay;

	r->wanted = smaller(r->wanted, OPERATION_BYTES);
	if (r->type == VIRTIO_BLK_T_IN)
		layer = pv_overlay_find(layer, r->io.offset, &r->wanted);
	if (layer) {
		r->io.fd = layer->fd;
		r->io.cached = layer->cached;
		r->here = layer->in_memory && r->wanted <= HERE_BYTES;
	} else if (is_partial(file->offset_align, r->io.offset, r->wanted) ||
	           is_misaligned(file, r)) {
		return has_bounce(r) ? next_bounced(file, r) : fail(r, -ENOMEM);
	}
	next_segments(r, r->wanted);
	return true;
}

static bool next_transfer(struct pv_block_file *file, struct pv_block_request *r)
{
	bool partial = is_partial(file->offset_align, r->offset, r->length);

	if (r->done == r->length)
		return false;
	r->io.kind = r->type == VIRTIO_BLK_T_IN ? PV_IO_READ : PV_IO_WRITE;
	r->io.offset = r->offset + r->done;
	r->io.cached = file->cached;
	r->wanted = r->length - r->done;
	if (file->overlay)
		return next_in_layers(file, r);
	if ((partial || r->misaligned) && !has_bounce(r))
		return fail(r, -ENOMEM);
	if (partial && r->type == VIRTIO_BLK_T_OUT) {
		int result = write_edges(file, r);

		if (result < 0 || r->done == r->length)
			return result < 0 ? fail(r, result) : false;
		r->io.offset = r->offset + r->done;
		r->wanted = r->length - r->done;
	}
	if (r->bounce)
		return next_bounced(file, r);
	next_segments(r, OPERATION_BYTES);
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

/* Zero the parts of units that a range begins and ends with; the units between them are left of
 * it. */
static int zero_edges(struct pv_block_file *file, struct pv_block_request *r,
                      struct pv_block_range *range)
{
	uint64_t mask = file->offset_align - 1;
	uint64_t end = range->offset + range->length, last = end & ~mask;
	uint64_t head = smaller((range->offset + mask) & ~mask, end);
	int result = 0;

	if (!has_bounce(r))
		return -ENOMEM;
	if (last < head)
		last = head;
	pthread_mutex_lock(&file->lock);
	if (range->offset < head)
		result = write_within(file, r, range->offset, head - range->offset, true);
	if (result == 0 && last < end)
		result = write_within(file, r, last, end - last, true);
	pthread_mutex_unlock(&file->lock);
	range->offset = head;
	range->length = last - head;
	return result;
}

static bool next_range(struct pv_block_file *file, struct pv_block_request *r)
{
	struct pv_block_range *range = &r->zero[r->range];

	for (; r->range < r->ranges; range = &r->zero[++r->range]) {
		int result = is_partial(unit_of_changes(file), range->offset, range->length)
		                     ? zero_edges(file, r, range)
		                     : 0;

		if (result < 0)
			return fail(r, result);
		if (range->length > 0)
			break;
	}
	if (r->range == r->ranges)
		return false;
	r->io.offset = range->offset + r->done;
	r->io.length = range->length - r->done;
	r->io.kind = range->punch && (file->flags & PV_BLOCK_UNMAP) ? PV_IO_PUNCH : PV_IO_ZERO;
	if (file->overlay) {
		/* What is sparse from the first need keep no room for zeroes. */
		r->io.kind = PV_IO_PUNCH;
		r->io.fd = file->overlay->fd;
	}
	if (r->by_hand)
		write_zeroes(r);
	return true;
}

static bool next_sync(const struct pv_block_file *file, struct pv_block_request *r)
{
	bool changes = r->ranges > 0 || r->type == VIRTIO_BLK_T_OUT;

	if (r->synced || !(r->type == VIRTIO_BLK_T_FLUSH || (changes && file->write_through)))
		return false;
	if (file->overlay && file->overlay->in_memory)
		return false;
	if (file->overlay)
		r->io.fd = file->overlay->fd;
	r->io.kind = PV_IO_SYNC;
	return true;
}

bool pv_block_next(struct pv_block_file *file, struct pv_block_request *r)
{
	bool more = false;

	r->here = false;
	r->io.fd = file->fd;
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

/* What fallocate(2) says of a file, file system or kernel that cannot do it; -EINVAL of a part of
 * a block device's block. */
static bool is_unable(const struct pv_io *io)
{
	return io->kind != PV_IO_WRITE &&
	       (io->result == -EOPNOTSUPP || io->result == -ENODEV || io->result == -ENOSYS ||
	        io->result == -EINVAL);
}

/* What is read from now on is what was written. */
static void show(const struct pv_block_file *file, const struct pv_block_request *r, uint64_t start,
                 uint64_t bytes)
{
	if (file->overlay && bytes > 0)
		pv_overlay_mark(file->overlay, start + r->done, start + r->done + bytes);
}

static void absorb_range(const struct pv_block_file *file, struct pv_block_request *r)
{
	const struct pv_block_range *range = &r->zero[r->range];
	uint64_t length = range->length;

	if (is_unable(&r->io)) {
		/* A discard asks for nothing that must happen. */
		r->by_hand = r->type != VIRTIO_BLK_T_DISCARD;
		r->done = r->by_hand ? 0 : length;
	} else if (r->io.result < 0 || (r->io.kind == PV_IO_WRITE && r->io.result == 0)) {
		fail(r, r->io.result);
	} else {
		uint64_t bytes = r->io.kind == PV_IO_WRITE ? (uint64_t)r->io.result : r->io.length;

		show(file, r, range->offset, bytes);
		r->done += bytes;
	}
	if (r->done == length) {
		r->done = 0;
		r->range++;
	}
}

static void absorb_transfer(const struct pv_block_file *file, struct pv_block_request *r)
{
	uint64_t before = r->offset + r->done - r->io.offset; /* of a unit, and not asked for */
	uint64_t bytes;

	if (r->io.result < 0 || (uint64_t)r->io.result <= before) {
		fail(r, r->io.result < 0 ? r->io.result : 0); /* the file has become shorter */
		return;
	}
	bytes = smaller((uint64_t)r->io.result - before, r->wanted);
	if (r->bounced && r->type == VIRTIO_BLK_T_IN)
		pv_block_scatter(r->at, r->left, (char *)r->bounce + before, bytes);
	if (r->type == VIRTIO_BLK_T_OUT)
		show(file, r, r->offset, bytes);
	advance(r, bytes);
}

void pv_block_cut(struct pv_block_request *r)
{
	bool is_large = r->ranges > 0 ? r->range < r->ranges : r->length - r->done > OPERATION_BYTES;

	if (is_large)
		r->status = VIRTIO_BLK_S_IOERR;
}

void pv_block_absorb(struct pv_block_file *file, struct pv_block_request *r)
{
	if (r->io.result == -EINTR || r->io.result == -EAGAIN)
		return;
	if (r->io.kind == PV_IO_SYNC) {
		r->synced = true;
		if (r->io.result < 0)
			fail(r, r->io.result);
	} else if (r->ranges > 0) {
		absorb_range(file, r);
	} else {
		absorb_transfer(file, r);
	}
}
