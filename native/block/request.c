#include "block/request_internal.h"

#include <linux/virtio_blk.h>
#include <string.h>

#include "virtio/iov_internal.h"

#define HEADER_BYTES sizeof(struct virtio_blk_outhdr)
#define HAS(features, bit) (((features) >> (bit)&1) != 0)

uint64_t pv_block_gather(const struct iovec *iov, uint32_t count, void *buffer, uint64_t length)
{
	uint64_t done = 0;

	for (uint32_t i = 0; i < count && done < length; i++) {
		uint64_t part = iov[i].iov_len < length - done ? iov[i].iov_len : length - done;

		memcpy((char *)buffer + done, iov[i].iov_base, part);
		done += part;
	}
	return done;
}

uint64_t pv_block_scatter(const struct iovec *iov, uint32_t count, const void *buffer,
                          uint64_t length)
{
	uint64_t done = 0;

	for (uint32_t i = 0; i < count && done < length; i++) {
		uint64_t part = iov[i].iov_len < length - done ? iov[i].iov_len : length - done;

		memcpy(iov[i].iov_base, (const char *)buffer + done, part);
		done += part;
	}
	return done;
}

/* Zero `length` bytes of segments, behind `before` that were written. */
static void clear(struct pv_block_request *request, const struct iovec *iov, uint32_t count,
                  uint64_t before, uint64_t length)
{
	if (length > PV_IOV_CLEAR_BYTES) {
		length = PV_IOV_CLEAR_BYTES;
		request->writable = (uint32_t)(before + length);
	}
	pv_iov_clear(iov, count, length);
}

/* Take `length` bytes of the segments from byte `skip` on; neighbours become one segment. */
static void take_data(struct pv_block_request *request, const struct iovec *iov, uint64_t skip,
                      uint64_t length)
{
	struct iovec *last = NULL;

	request->length = length;
	request->at = request->iov;
	request->left = 0;
	for (; length > 0; iov++) {
		uint64_t part = iov->iov_len;
		char *base = iov->iov_base;

		if (skip >= part) {
			skip -= part;
			continue;
		}
		base += skip;
		part -= skip;
		skip = 0;
		if (part > length)
			part = length;
		length -= part;
		if (last && (char *)last->iov_base + last->iov_len == base) {
			last->iov_len += part;
		} else {
			last = &request->iov[request->left++];
			*last = (struct iovec){base, part};
		}
	}
}

static bool has_data_out(uint32_t type)
{
	return type == VIRTIO_BLK_T_OUT || type == VIRTIO_BLK_T_DISCARD ||
	       type == VIRTIO_BLK_T_WRITE_ZEROES;
}

void pv_block_clear_rest(struct pv_block_request *request)
{
	if (request->done == request->length)
		return;
	if (!has_data_out(request->type))
		clear(request, request->at, request->left, request->done,
		      request->length - request->done);
}

/* From one segment, as drivers have it, in one go. */
static bool take_header(const struct pv_chain *chain, struct virtio_blk_outhdr *header)
{
	if (chain->readable > 0 && chain->iov[0].iov_len >= HEADER_BYTES) {
		memcpy(header, chain->iov[0].iov_base, HEADER_BYTES);
		return true;
	}
	return pv_block_gather(chain->iov, chain->readable, header, HEADER_BYTES) == HEADER_BYTES;
}

const char *pv_block_parse(const struct pv_chain *chain, struct pv_block_request *request)
{
	const struct iovec *writable = &chain->iov[chain->readable];
	const struct iovec *last = &writable[chain->writable - 1];
	struct virtio_blk_outhdr header;

	if (!take_header(chain, &header))
		return "a block request without a whole header";
	if (chain->writable == 0)
		return "a block request without a status byte";
	request->head = chain->head;
	request->type = header.type;
	request->status = VIRTIO_BLK_S_OK;
	request->answer = (uint8_t *)last->iov_base + last->iov_len - 1;
	request->writable = (uint32_t)chain->writable_bytes;
	request->error = 0;
	request->done = 0;
	request->range = request->ranges = 0;
	request->by_hand = request->synced = request->misaligned = false;
	request->bounce = NULL;
	request->corrupt = NULL;
	/* Beyond any capacity when it does not fit. */
	request->offset = header.sector <= UINT64_MAX / PV_SECTOR ? header.sector * PV_SECTOR
	                                                          : UINT64_MAX;
	if (has_data_out(request->type)) {
		take_data(request, chain->iov, HEADER_BYTES, chain->readable_bytes - HEADER_BYTES);
		clear(request, writable, chain->writable, 0, chain->writable_bytes - 1);
	} else {
		take_data(request, writable, 0, chain->writable_bytes - 1);
	}
	return NULL;
}

static bool fits(const struct pv_block_limits *limits, uint64_t offset, uint64_t length)
{
	uint64_t end = limits->sectors * PV_SECTOR;

	return offset <= end && length <= end - offset;
}

static uint8_t check_transfer(const struct pv_block_limits *limits,
                              const struct pv_block_request *request)
{
	bool good = request->length % PV_SECTOR == 0 &&
	            fits(limits, request->offset, request->length) &&
	            (request->type == VIRTIO_BLK_T_IN || !limits->readonly);

	return good ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
}

/* VIRTIO_BLK_S_UNSUPP is for flags, as 5.2.6.2 of the specification has it. */
static uint8_t take_range(const struct pv_block_limits *limits, struct pv_block_request *request,
                          const struct virtio_blk_discard_write_zeroes *given)
{
	bool discard = request->type == VIRTIO_BLK_T_DISCARD;
	uint32_t known = discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	struct pv_block_range *range = &request->zero[request->ranges];

	if (given->flags & ~known)
		return VIRTIO_BLK_S_UNSUPP;
	if (given->num_sectors > PV_BLOCK_RANGE_SECTORS || given->sector > limits->sectors)
		return VIRTIO_BLK_S_IOERR;
	range->offset = given->sector * PV_SECTOR;
	range->length = (uint64_t)given->num_sectors * PV_SECTOR;
	range->punch = discard || given->flags != 0;
	if (!fits(limits, range->offset, range->length))
		return VIRTIO_BLK_S_IOERR;
	if (range->length > 0)
		request->ranges++;
	return VIRTIO_BLK_S_OK;
}

static uint8_t check_ranges(const struct pv_block_limits *limits, struct pv_block_request *request)
{
	struct virtio_blk_discard_write_zeroes given[PV_BLOCK_RANGES];
	uint64_t count = request->length / sizeof(given[0]);
	uint8_t status = VIRTIO_BLK_S_OK;

	if (count == 0 || count > PV_BLOCK_RANGES || request->length % sizeof(given[0]) != 0 ||
	    limits->readonly)
		return VIRTIO_BLK_S_IOERR;
	pv_block_gather(request->iov, request->left, given, request->length);
	for (uint64_t i = 0; i < count && status == VIRTIO_BLK_S_OK; i++)
		status = take_range(limits, request, &given[i]);
	return status;
}

uint8_t pv_block_check(const struct pv_block_limits *limits, struct pv_block_request *request)
{
	switch (request->type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT:
		return check_transfer(limits, request);
	case VIRTIO_BLK_T_FLUSH:
		return VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_GET_ID:
		return request->length < PV_BLOCK_ID_BYTES ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_DISCARD:
		return HAS(limits->features, VIRTIO_BLK_F_DISCARD) ? check_ranges(limits, request)
		                                                   : VIRTIO_BLK_S_UNSUPP;
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return HAS(limits->features, VIRTIO_BLK_F_WRITE_ZEROES)
		               ? check_ranges(limits, request)
		               : VIRTIO_BLK_S_UNSUPP;
	default:
		return VIRTIO_BLK_S_UNSUPP;
	}
}
