/* The block device's data path on storage with blocks larger than the guest's: a file that takes
 * nothing but whole blocks of 4096 bytes, as direct I/O does there. */
#include <sys/syscall.h>
#include <sys/uio.h>

#include "tests/block/device.h"

#define UNIT 4096
#define IMAGE (SECTORS * 512)

static int strict = -1; /* the file */
static bool ranges_only;
static _Atomic unsigned calls;

static uint64_t addresses(const struct iovec *iov, int count)
{
	uint64_t all = 0;

	for (int i = 0; i < count; i++)
		all |= (uint64_t)(uintptr_t)iov[i].iov_base | iov[i].iov_len;
	return all;
}

static bool is_refused(int fd, uint64_t where, bool is_range)
{
	if (fd != strict || (ranges_only && !is_range))
		return false;
	calls++;
	errno = EINVAL;
	return where % UNIT != 0;
}

/* In place of the C library's, for the files of the data path that are linked to this. */
ssize_t pread(int fd, void *data, size_t size, off_t at)
{
	return is_refused(fd, (uint64_t)(uintptr_t)data | size | (uint64_t)at, false)
	               ? -1
	               : syscall(SYS_pread64, fd, data, size, at);
}

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t at, int flags)
{
	return is_refused(fd, addresses(iov, count) | (uint64_t)at, false)
	               ? -1
	               : syscall(SYS_preadv2, fd, iov, count, at, 0, flags);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t at, int flags)
{
	return is_refused(fd, addresses(iov, count) | (uint64_t)at, false)
	               ? -1
	               : syscall(SYS_pwritev2, fd, iov, count, at, 0, flags);
}

int fallocate(int fd, int mode, off_t at, off_t size)
{
	return is_refused(fd, (uint64_t)at | (uint64_t)size, true)
	               ? -1
	               : (int)syscall(SYS_fallocate, fd, mode, at, size);
}

static void make_strict(struct device *d, uint32_t flags)
{
	struct pv_block_config config = {
		.fd = -1, .flags = flags, .offset_align = UNIT, .memory_align = UNIT};

	make(d, &config);
	/* io_uring calls nothing of the above: there the file takes all, and only data are compared. */
	strict = d->file;
	start(d, FEATURES, 1);
}

static void unmake_strict(struct device *d)
{
	strict = -1;
	unmake(d);
}

static char *contents(const struct device *d)
{
	char *all = malloc(IMAGE);

	CHECK_EQ(syscall(SYS_pread64, d->file, all, IMAGE, 0), IMAGE);
	CHECK_EQ(lseek(d->file, 0, SEEK_END), IMAGE);
	return all;
}

static void check_image(const struct device *d, const char *wanted)
{
	char *all = contents(d);

	CHECK_EQ(memcmp(all, wanted, IMAGE), 0);
	free(all);
}

/* Neighbouring sectors are not to change. */
static void test_sectors_of_512_bytes(void)
{
	static const uint32_t SECTOR[] = {0, 1, 7, 8, 9, 15}, LENGTH[] = {512, 1024, 4096, 8192, 61440};
	struct device d;
	char *image = calloc(1, IMAGE);
	unsigned seed = 0;

	make_strict(&d, 0);
	for (unsigned s = 0; s < 6; s++) {
		for (unsigned l = 0; l < 5; l++) {
			char *out = data_at(&d, 512 + seed % 3), *in = data_at(&d, 2 * DATA + seed % 5);

			fill(out, LENGTH[l], ++seed);
			memcpy(image + SECTOR[s] * 512, out, LENGTH[l]);
			CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, SECTOR[s], out, LENGTH[l], NULL), 0);
			CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTOR[s], in, LENGTH[l], NULL), 0);
			CHECK_EQ(memcmp(in, out, LENGTH[l]), 0);
			CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTORS - 1, in, 512, NULL), 0);
		}
	}
	check_image(&d, image);
	unmake_strict(&d);
	free(image);
}

/* A read of whatever size is one read of the host's, a write reads no more than what it keeps of
 * its first and last block, and what is aligned is moved as it is. */
static void test_costs_no_more_than_it_must(void)
{
	static const struct {
		uint32_t type, sector, length;
		unsigned threads;
	} COST[] = {
		{VIRTIO_BLK_T_IN, 8, 8192, 1},  {VIRTIO_BLK_T_OUT, 8, 8192, 1},
		{VIRTIO_BLK_T_IN, 9, 8192, 1},  {VIRTIO_BLK_T_IN, 1, 512, 1},
		{VIRTIO_BLK_T_OUT, 1, 512, 2},  {VIRTIO_BLK_T_OUT, 8, 6144, 2},
		{VIRTIO_BLK_T_OUT, 9, 8192, 3}, {VIRTIO_BLK_T_OUT, 9, 61440, 3},
	};
	struct device d;

	make_strict(&d, PV_BLOCK_THREADS);
	for (unsigned i = 0; i < sizeof(COST) / sizeof(COST[0]); i++) {
		calls = 0;
		CHECK_EQ(ask(&d, COST[i].type, COST[i].sector, data_at(&d, 0), COST[i].length, NULL),
		         0);
		CHECK_EQ(calls, COST[i].threads);
	}
	unmake_strict(&d);
}

/* Larger than what is held at once: its beginning, whole blocks, its end. */
static void test_a_large_write_that_fits_no_block(void)
{
	enum { LARGE = 1201 * 512 };
	static const uint32_t SECTOR[] = {0, 3, 8};
	struct device d;
	char *image = calloc(1, IMAGE), *data;

	make_strict(&d, 0);
	data = data_at(&d, 2 * DATA);
	for (unsigned i = 0; i < sizeof(SECTOR) / sizeof(SECTOR[0]); i++) {
		fill(data, LARGE, i);
		memcpy(image + SECTOR[i] * 512, data, LARGE);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, SECTOR[i], data, LARGE, NULL), 0);
		check_image(&d, image);
		memset(data, 0, LARGE);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTOR[i], data, LARGE, NULL), 0);
		CHECK_EQ(memcmp(data, image + SECTOR[i] * 512, LARGE), 0);
	}
	unmake_strict(&d);
	free(image);
}

static void test_zeroed_ranges(void)
{
	static const uint32_t SECTOR[] = {0, 1, 7, 8, 15, 16}, COUNT[] = {1, 6, 7, 8, 9, 100};
	struct device d;
	char *image = malloc(IMAGE);

	make_strict(&d, PV_BLOCK_UNMAP);
	for (unsigned s = 0; s < 6; s++) {
		for (unsigned c = 0; c < 6; c++) {
			memset(image, 1, IMAGE);
			CHECK_EQ(syscall(SYS_pwrite64, d.file, image, IMAGE, 0), IMAGE);
			/* Two of them, one behind the other. */
			memset(image + SECTOR[s] * 512, 0, 2 * COUNT[c] * 512);
			CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, SECTOR[s], COUNT[c], s & 1, 32),
			         VIRTIO_BLK_S_OK);
			check_image(&d, image);
		}
	}
	unmake_strict(&d);
	free(image);
}

static void test_detected_zeroes(void)
{
	struct device d;
	char *image = malloc(IMAGE);

	make_strict(&d, PV_BLOCK_DETECT_ZEROES);
	memset(image, 1, IMAGE);
	CHECK_EQ(syscall(SYS_pwrite64, d.file, image, IMAGE, 0), IMAGE);
	memset(image + 5 * 512, 0, 20 * 512);
	memset(data_at(&d, 0), 0, 20 * 512);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 5, data_at(&d, 0), 20 * 512, NULL), 0);
	check_image(&d, image);
	unmake_strict(&d);
	free(image);
}

/* Through the page cache all can be written anywhere, but a block device zeroes whole blocks. */
static void test_ranges_that_only_the_page_cache_takes(void)
{
	struct pv_block_config config = {.fd = -1, .flags = PV_BLOCK_UNMAP};
	struct device d;
	char *image = malloc(IMAGE);

	make(&d, &config);
	strict = d.file;
	ranges_only = true;
	start(&d, FEATURES, 1);
	memset(image, 1, IMAGE);
	CHECK_EQ(syscall(SYS_pwrite64, d.file, image, IMAGE, 0), IMAGE);
	memset(image + 512, 0, 3 * 512);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 1, 3, 0, 16), VIRTIO_BLK_S_OK);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 1, 3, 0, 16), VIRTIO_BLK_S_OK);
	check_image(&d, image);
	ranges_only = false;
	unmake_strict(&d);
	free(image);
}

/* A part of a block stays. */
static void test_discarded_ranges(void)
{
	struct device d;
	char *image = malloc(IMAGE);

	make_strict(&d, PV_BLOCK_UNMAP);
	memset(image, 1, IMAGE);
	CHECK_EQ(syscall(SYS_pwrite64, d.file, image, IMAGE, 0), IMAGE);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 1, 6, 0, 32), VIRTIO_BLK_S_OK);
	check_image(&d, image);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 1, 16, 0, 16), VIRTIO_BLK_S_OK);
	memset(image + UNIT, 0, UNIT);
	check_image(&d, image);
	unmake_strict(&d);
	free(image);
}

static void test_an_error_of_the_host(void)
{
	struct device d;
	uint32_t type;

	make_strict(&d, 0);
	CHECK_EQ(ftruncate(d.file, UNIT / 2), 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 1, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(pv_block_take_error(d.block, &type), EIO);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 5, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 1, 1, 0, 16), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	unmake_strict(&d);
}

static void run_all(void)
{
	RUN(test_sectors_of_512_bytes);
	RUN(test_costs_no_more_than_it_must);
	RUN(test_a_large_write_that_fits_no_block);
	RUN(test_zeroed_ranges);
	RUN(test_detected_zeroes);
	RUN(test_ranges_that_only_the_page_cache_takes);
	RUN(test_discarded_ranges);
	RUN(test_an_error_of_the_host);
}

int main(void)
{
	on_each_engine(run_all);
	return 0;
}
