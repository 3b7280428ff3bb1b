/* What a request may be, at its limits: read, checked and gone on with by hand, without a device. */
#include "block/block.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <string.h>

#include "block/work_internal.h"
#include "tests/check.h"

#define ALL (UINT64_C(1) << VIRTIO_BLK_F_DISCARD | UINT64_C(1) << VIRTIO_BLK_F_WRITE_ZEROES)

static struct pv_block_request request;
static struct virtio_blk_discard_write_zeroes ranges[PV_BLOCK_RANGES + 1];

/* A request of this type for the first `count` ranges. */
static void ask(uint32_t type, uint32_t count)
{
	memset(&request, 0, sizeof(request));
	request.type = type;
	request.length = count * sizeof(ranges[0]);
	request.iov[0] = (struct iovec){ranges, request.length};
	request.at = request.iov;
	request.left = 1;
}

static void check(uint64_t features, uint32_t type, uint32_t count, uint8_t expected)
{
	const struct pv_block_limits limits = {.sectors = UINT32_MAX, .features = features};

	ask(type, count);
	CHECK_EQ(pv_block_check(&limits, &request), expected);
}

static void test_a_range_has_a_largest_size(void)
{
	memset(ranges, 0, sizeof(ranges));
	ranges[0].num_sectors = PV_BLOCK_RANGE_SECTORS;
	check(ALL, VIRTIO_BLK_T_DISCARD, 1, VIRTIO_BLK_S_OK);
	CHECK_EQ(request.zero[0].length, (uint64_t)PV_BLOCK_RANGE_SECTORS * PV_SECTOR);
	ranges[0].num_sectors++;
	check(ALL, VIRTIO_BLK_T_DISCARD, 1, VIRTIO_BLK_S_IOERR);
}

static void test_ranges_have_a_largest_number(void)
{
	memset(ranges, 0, sizeof(ranges));
	for (unsigned i = 0; i <= PV_BLOCK_RANGES; i++)
		ranges[i].num_sectors = 1;
	check(ALL, VIRTIO_BLK_T_WRITE_ZEROES, PV_BLOCK_RANGES, VIRTIO_BLK_S_OK);
	CHECK_EQ(request.ranges, PV_BLOCK_RANGES);
	check(ALL, VIRTIO_BLK_T_WRITE_ZEROES, PV_BLOCK_RANGES + 1, VIRTIO_BLK_S_IOERR);
	check(ALL, VIRTIO_BLK_T_WRITE_ZEROES, 0, VIRTIO_BLK_S_IOERR);
}

static void test_each_type_has_its_feature(void)
{
	static const struct {
		uint32_t type, feature;
	} types[] = {
		{VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_F_DISCARD},
		{VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES},
	};

	memset(ranges, 0, sizeof(ranges));
	for (unsigned i = 0; i < 2; i++)
		for (uint32_t feature = 0; feature < 64; feature++)
			check(UINT64_C(1) << feature, types[i].type, 1,
			      feature == types[i].feature ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_UNSUPP);
}

/* A discard that the file cannot do is left out; zeroes are written then. */
static void test_what_a_file_cannot_do(void)
{
	struct pv_block_file file = {.fd = -1, .offset_align = 1, .memory_align = 1};

	memset(ranges, 0, sizeof(ranges));
	ranges[0].num_sectors = 8;
	for (unsigned i = 0; i < 2; i++) {
		bool zeroes = i == 1;

		check(ALL, zeroes ? VIRTIO_BLK_T_WRITE_ZEROES : VIRTIO_BLK_T_DISCARD, 1,
		      VIRTIO_BLK_S_OK);
		CHECK(pv_block_next(&file, &request));
		request.io.result = -EOPNOTSUPP;
		pv_block_absorb(&file, &request);
		CHECK_EQ(request.by_hand, zeroes);
		CHECK_EQ(pv_block_next(&file, &request), zeroes);
		CHECK_EQ(request.status, VIRTIO_BLK_S_OK);
	}
	CHECK_EQ(request.io.kind, PV_IO_WRITE);
}

/* One that comes in the place of another knows nothing of it. */
static void test_a_request_begins_anew(void)
{
	struct virtio_blk_outhdr header = {.type = VIRTIO_BLK_T_FLUSH};
	uint8_t status;
	static struct pv_chain chain;

	chain.readable = chain.writable = 1;
	chain.readable_bytes = sizeof(header);
	chain.writable_bytes = 1;
	chain.iov[0] = (struct iovec){&header, sizeof(header)};
	chain.iov[1] = (struct iovec){&status, 1};
	memset(&request, 1, sizeof(request));
	CHECK(!pv_block_parse(&chain, &request));
	CHECK_EQ(request.status, VIRTIO_BLK_S_OK);
	CHECK_EQ(request.error, 0);
	CHECK_EQ(request.done, 0);
	CHECK_EQ(request.ranges, 0);
	CHECK(!request.synced && !request.by_hand && !request.misaligned);
	CHECK(!request.bounce && !request.corrupt);
}

static void test_a_disk_has_limits(void)
{
	struct pv_block_config config = {.sectors = 8, .offset_align = 4096, .memory_align = 4096};
	static const struct pv_queue queues[PV_BLOCK_QUEUES + 1];
	struct pv_block *block;

	CHECK_EQ(pv_block_new(&config, &block), 0);
	CHECK_EQ(pv_block_start(block, 0, queues, PV_BLOCK_QUEUES + 1, NULL), -EINVAL);
	CHECK_EQ(pv_block_start(block, 0, queues, 0, NULL), -EINVAL);
	pv_block_free(block);
	config.offset_align = 8192;
	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	config.offset_align = 4096;
	config.memory_align = 8192;
	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	config.offset_align = 8192;
	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
}

int main(void)
{
	RUN(test_a_range_has_a_largest_size);
	RUN(test_ranges_have_a_largest_number);
	RUN(test_each_type_has_its_feature);
	RUN(test_what_a_file_cannot_do);
	RUN(test_a_request_begins_anew);
	RUN(test_a_disk_has_limits);
	return 0;
}
