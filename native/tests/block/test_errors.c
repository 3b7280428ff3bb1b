/* The block device's data path: what may not be asked for, what the host cannot do, and what breaks
 * the device. */
#include "tests/block/device.h"

static void test_wrong_configurations(void)
{
	struct pv_block_config config = {.offset_align = 512, .memory_align = 3};
	struct pv_block *block;

	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	config.memory_align = 8192;
	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	config.memory_align = 0;
	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	config.memory_align = 4096;
	CHECK_EQ(pv_block_new(&config, &block), 0);
	CHECK_EQ(pv_block_start(block, 0, NULL, 0, NULL), -EINVAL);
	CHECK_EQ(pv_block_stop(block, PV_FOREVER), 0);
	pv_block_free(block);
	pv_block_free(NULL);
}

static void test_a_missing_status_byte_breaks_the_device(void)
{
	struct device d;

	make_started(&d, 0);
	struct part parts[] = {{header(&d, 0, VIRTIO_BLK_T_OUT, 0), 16, false},
	                       {data_at(&d, 0), 512, false}};
	offer(&d, &d.queues[0], parts, 2);
	kick(&d.queues[0]);
	check_broken(&d, "a block request without a status byte");
	unmake(&d);
}

static void test_a_short_header_breaks_the_device(void)
{
	struct device d;

	make_started(&d, 0);
	struct part parts[] = {{header(&d, 0, VIRTIO_BLK_T_IN, 0), 15, false},
	                       {status_byte(&d, 0), 1, true}};
	offer(&d, &d.queues[0], parts, 2);
	kick(&d.queues[0]);
	check_broken(&d, "a block request without a whole header");
	unmake(&d);
}

static void test_a_broken_ring_breaks_the_device_and_all_its_queues(void)
{
	struct pv_block_config config = {.fd = -1};
	struct device d;
	uint8_t *status;

	make(&d, &config);
	start(&d, FEATURES, 2);
	d.queues[0].avail->ring[0] = SIZE;
	__atomic_store_n(&d.queues[0].avail->idx, 1, __ATOMIC_RELEASE);
	kick(&d.queues[0]);
	check_broken(&d, "head 64 in a queue of 64");
	status = request(&d, &d.queues[1], 0, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 512);
	kick(&d.queues[1]);
	usleep(2000);
	CHECK_EQ(*status, UNANSWERED);
	/* A reset makes it whole. */
	stop(&d);
	pv_virtio_irq_reset(d.guest.irq);
	start(&d, FEATURES, 2);
	check_lives(&d);
	unmake(&d);
}

static void test_beyond_capacity(void)
{
	static const uint64_t SECTOR[] = {SECTORS, SECTORS - 1, UINT64_MAX, UINT64_MAX / 512,
	                                  UINT64_MAX / 512 + 1, UINT64_C(1) << 55};
	struct device d;
	char *data;

	make_started(&d, 0);
	data = data_at(&d, 0);
	for (unsigned i = 0; i < sizeof(SECTOR) / sizeof(SECTOR[0]); i++) {
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTOR[i], data, 1024, NULL), VIRTIO_BLK_S_IOERR);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, SECTOR[i], data, 1024, NULL), VIRTIO_BLK_S_IOERR);
	}
	CHECK_EQ(lseek(d.file, 0, SEEK_END), SECTORS * 512);
	check_lives(&d);
	unmake(&d);
}

static void test_half_sectors_are_refused(void)
{
	struct device d;

	make_started(&d, 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 511, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 513, NULL), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	unmake(&d);
}

static void test_unknown_requests_are_unsupported(void)
{
	struct device d;
	uint32_t written;

	make_started(&d, 0);
	CHECK_EQ(ask(&d, 77, 0, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(ask(&d, 2, 0, NULL, 0, &written), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(written, 1);
	check_lives(&d);
	unmake(&d);
}

static void test_read_only(void)
{
	struct virtio_blk_discard_write_zeroes *range;
	struct device d;
	char *data, byte;

	make_started(&d, PV_BLOCK_READONLY | PV_BLOCK_UNMAP);
	CHECK_EQ(pwrite(d.file, "x", 1, 0), 1);
	data = data_at(&d, 0);
	range = (void *)data;
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data, 512, NULL), VIRTIO_BLK_S_IOERR);
	*range = (struct virtio_blk_discard_write_zeroes){.num_sectors = 8};
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_DISCARD, 0, data, 16, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_WRITE_ZEROES, 0, data, 16, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL), VIRTIO_BLK_S_OK);
	check_lives(&d);
	CHECK_EQ(pread(d.file, &byte, 1, 0), 1);
	CHECK_EQ(byte, 'x');
	unmake(&d);
}

static void test_hostile_ranges(void)
{
	static const struct {
		uint64_t sector;
		uint32_t sectors, flags, length;
		uint8_t discard, zeroes;
	} CASES[] = {
		{SECTORS, 1, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{SECTORS - 1, 2, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{UINT64_MAX, 1, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, UINT32_MAX, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 1, 2, 16, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_UNSUPP},
		{0, 1, 1, 16, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_OK},
		{0, 1, 0, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 1, 0, 15, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 1, 0, 17, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 1, 0, 16 * PV_BLOCK_RANGES, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK},
		{0, 1, 0, 16 * (PV_BLOCK_RANGES + 1), VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 0, 0, 16, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK},
	};
	struct device d;

	make_started(&d, PV_BLOCK_UNMAP);
	for (unsigned i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
		fprintf(stderr, "  case %u\n", i);
		CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, CASES[i].sector, CASES[i].sectors,
		              CASES[i].flags, CASES[i].length),
		         CASES[i].discard);
		CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, CASES[i].sector, CASES[i].sectors,
		              CASES[i].flags, CASES[i].length),
		         CASES[i].zeroes);
	}
	CHECK_EQ(lseek(d.file, 0, SEEK_END), SECTORS * 512);
	unmake(&d);
}

static void test_ranges_that_were_not_negotiated(void)
{
	struct pv_block_config config = {.fd = -1, .flags = PV_BLOCK_UNMAP};
	struct device d;

	make(&d, &config);
	start(&d, 0, 1);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 0, 1, 0, 16), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 0, 16), VIRTIO_BLK_S_UNSUPP);
	unmake(&d);
}

static void test_a_full_disk_is_an_io_error(void)
{
	struct pv_block_config config = {.fd = open("/dev/full", O_RDWR | O_CLOEXEC)};
	struct device d;

	CHECK(config.fd >= 0);
	make(&d, &config);
	start(&d, FEATURES, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 4096, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	unmake(&d);
}

static void test_a_shrunk_file_is_an_io_error(void)
{
	struct device d;
	char *data;

	make_started(&d, 0);
	data = data_at(&d, 0);
	CHECK_EQ(ftruncate(d.file, 8192), 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 15, data, 4096, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 16, data, 512, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 15, data, 512, NULL), VIRTIO_BLK_S_OK);
	unmake(&d);
}

/* A descriptor that cannot be written stands for a disk that cannot. */
static void test_a_write_that_fails_is_an_io_error(void)
{
	struct pv_block_config config = {.fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC)};
	struct device d;

	make(&d, &config);
	start(&d, FEATURES, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	unmake(&d);
}

static void run_all(void)
{
	RUN(test_a_missing_status_byte_breaks_the_device);
	RUN(test_a_short_header_breaks_the_device);
	RUN(test_a_broken_ring_breaks_the_device_and_all_its_queues);
	RUN(test_beyond_capacity);
	RUN(test_half_sectors_are_refused);
	RUN(test_unknown_requests_are_unsupported);
	RUN(test_read_only);
	RUN(test_hostile_ranges);
	RUN(test_ranges_that_were_not_negotiated);
	RUN(test_a_full_disk_is_an_io_error);
	RUN(test_a_shrunk_file_is_an_io_error);
	RUN(test_a_write_that_fails_is_an_io_error);
}

int main(void)
{
	RUN(test_wrong_configurations);
	on_each_engine(run_all);
	return 0;
}
