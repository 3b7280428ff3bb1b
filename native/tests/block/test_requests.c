/* The block device's data path: what each kind of request does to the file and to the driver's
 * buffer. */
#include <sys/stat.h>

#include "tests/block/device.h"
#include "virtio/iov_internal.h"

static void test_what_is_written_is_read_back(void)
{
	struct device d;
	char *out, *in, *check = malloc(DATA);
	uint32_t written;

	make_started(&d, 0);
	out = data_at(&d, 0);
	in = data_at(&d, 2 * DATA);
	fill(out, DATA, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 3, out, DATA, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 3, in, DATA, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, DATA + 1);
	CHECK_EQ(memcmp(in, out, DATA), 0);
	CHECK_EQ(pread(d.file, check, DATA, 3 * 512), DATA);
	CHECK_EQ(memcmp(check, out, DATA), 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTORS - 1, in, 512, NULL), VIRTIO_BLK_S_OK);
	unmake(&d);
	free(check);
}

static void test_header_and_data_split_anyhow(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	char *data, *h;
	uint8_t *status;

	make_started(&d, 0);
	data = data_at(&d, 0);
	fill(data, 2048, 5);
	h = (char *)header(&d, 0, VIRTIO_BLK_T_OUT, 1);
	status = status_byte(&d, 0);
	/* The last byte of the header and the first of the data in one descriptor. */
	memcpy(data - 1, h + 15, 1);
	struct part write[] = {{h, 3, false},          {h + 3, 6, false}, {h + 9, 6, false},
	                       {data - 1, 701, false}, {data + 700, 324, false},
	                       {status, 1, true}};
	offer(&d, q, write, 6);
	kick(q);
	WAIT_FOR(used(q) == 1);
	CHECK_EQ(*status, VIRTIO_BLK_S_OK);
	h = (char *)header(&d, 0, VIRTIO_BLK_T_IN, 1);
	status = status_byte(&d, 0);
	/* Data and status in one descriptor. */
	struct part read[] = {{h, 16, false}, {data + 4096, 100, true}, {data + 8192, 925, true}};
	offer(&d, q, read, 3);
	kick(q);
	WAIT_FOR(used(q) == 2);
	CHECK_EQ(data[8192 + 924], VIRTIO_BLK_S_OK);
	CHECK_EQ(memcmp(data + 4096, data, 100), 0);
	CHECK_EQ(memcmp(data + 8192, data + 100, 924), 0);
	CHECK_EQ(*status, UNANSWERED);
	unmake(&d);
}

/* As virtio 1.2, 2.7.8.2, has it: `written` bytes from the first on; the status is the last. */
static void test_all_that_is_writable_is_written(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	char *data;
	uint32_t written;

	make_started(&d, 0);
	data = data_at(&d, 0);
	CHECK_EQ(pwrite(d.file, "xxxxxxxx", 8, (SECTORS - 1) * 512), 8);
	memset(data, 0x55, 1024);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTORS, data, 1024, &written), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(written, 1025);
	check_bytes(data, 1024, 0);
	CHECK_EQ(ftruncate(d.file, (SECTORS - 1) * 512 + 8), 0);
	memset(data, 0x55, 1024);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTORS - 1, data, 512, &written), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(written, 513);
	check_bytes(data, 8, 'x');
	check_bytes(data + 8, 504, 0);
	check_bytes(data + 512, 512, 0x55);
	struct part unknown[] = {{header(&d, 0, 77, 0), 16, false}, {data, 1025, true}};
	offer(&d, q, unknown, 2);
	kick(q);
	WAIT_FOR(used(q) == q->offered);
	CHECK_EQ(q->used->ring[(q->offered - 1) % SIZE].len, 1025);
	check_bytes(data, 1024, 0);
	CHECK_EQ(data[1024], VIRTIO_BLK_S_UNSUPP);
	memset(data, 0x55, 1024);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, SECTORS, data, 1024, &written), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(written, 1);
	check_bytes(data, 1024, 0x55);
	struct part room[] = {{header(&d, 0, VIRTIO_BLK_T_OUT, 0), 16, false},
	                      {data, 512, false},
	                      {data + 512, 100, true},
	                      {status_byte(&d, 0), 1, true}};
	offer(&d, q, room, 4);
	kick(q);
	WAIT_FOR(used(q) == q->offered);
	CHECK_EQ(q->used->ring[(q->offered - 1) % SIZE].len, 101);
	check_bytes(data, 512, 0x55);
	check_bytes(data + 512, 100, 0);
	check_bytes(data + 612, 412, 0x55);
	unmake(&d);
}

/* Some of it is in the host's memory, some is not, and a request may have of both. */
static void test_reads_of_what_the_host_has_in_memory_and_what_not(void)
{
	struct device d;
	char *data, *check = malloc(SECTORS * 512);

	make_started(&d, 0);
	data = data_at(&d, 0);
	for (uint32_t i = 0; i < SECTORS * 512; i += DATA) {
		fill(check + i, DATA, i / DATA);
		CHECK_EQ(pwrite(d.file, check + i, DATA, i), DATA);
	}
	CHECK_EQ(fsync(d.file), 0);
	for (uint32_t i = 0; i < SECTORS * 512; i += DATA / 4) {
		(void)posix_fadvise(d.file, 0, 0, POSIX_FADV_DONTNEED);
		(void)posix_fadvise(d.file, 0, 0, POSIX_FADV_RANDOM);
		CHECK_EQ(pread(d.file, data, 4096, i), 4096);
		memset(data, 0, DATA / 4);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, i / 512, data, DATA / 4, NULL), VIRTIO_BLK_S_OK);
		CHECK_EQ(memcmp(data, check + i, DATA / 4), 0);
	}
	unmake(&d);
	free(check);
}

static void test_serial_number(void)
{
	struct device d;
	char *data;
	uint32_t written;

	make_started(&d, 0);
	data = data_at(&d, 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_GET_ID, 0, data, 20, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, 21);
	CHECK_EQ(memcmp(data, "serial number 12345", 20), 0);
	memset(data, 0x55, 64);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_GET_ID, 0, data, 60, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, 61);
	CHECK_EQ(memcmp(data, "serial number 12345", 20), 0);
	check_bytes(data + 20, 40, 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_GET_ID, 0, data, 19, NULL), VIRTIO_BLK_S_IOERR);
	unmake(&d);
}

static void ones(int fd)
{
	char *data = malloc(SECTORS * 512);

	memset(data, 1, SECTORS * 512);
	CHECK_EQ(pwrite(fd, data, SECTORS * 512, 0), SECTORS * 512);
	CHECK_EQ(fsync(fd), 0);
	free(data);
}

static uint64_t room(int fd)
{
	struct stat status;

	CHECK_EQ(fstat(fd, &status), 0);
	return (uint64_t)status.st_blocks;
}

/* Whether exactly these bytes of a file of ones are zero. */
static void check_zero(int fd, uint32_t from, uint32_t to)
{
	char *data = malloc(SECTORS * 512);

	CHECK_EQ(pread(fd, data, SECTORS * 512, 0), SECTORS * 512);
	for (uint32_t i = 0; i < SECTORS * 512; i++)
		CHECK(data[i] == (i < from || i >= to));
	free(data);
}

static void test_zeroed_ranges(void)
{
	struct device d;

	make_started(&d, PV_BLOCK_UNMAP);
	ones(d.file);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 1, 3, 0, 32), VIRTIO_BLK_S_OK);
	check_zero(d.file, 512, 7 * 512);
	ones(d.file);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 0, 1024, 0, 16), VIRTIO_BLK_S_OK);
	check_zero(d.file, 0, 1024 * 512);
	CHECK(room(d.file) < SECTORS);
	CHECK_EQ(lseek(d.file, 0, SEEK_END), SECTORS * 512);
	unmake(&d);
}

/* A memfd has no way to zero a range and keep it; a device file has none at all. */
static void test_zeroes_are_written_where_ranges_cannot_be(void)
{
	struct pv_block_config config = {.fd = memfd_create("disk", MFD_CLOEXEC)};
	struct pv_block_config device = {.fd = open("/dev/zero", O_RDWR | O_CLOEXEC),
	                                 .sectors = 1 << 20};
	struct device d;

	CHECK(config.fd >= 0 && device.fd >= 0);
	ones(config.fd);
	make(&d, &config);
	start(&d, FEATURES, 1);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 5, 501, 0, 48), VIRTIO_BLK_S_OK);
	check_zero(d.file, 5 * 512, 1508 * 512);
	unmake(&d);
	make(&d, &device);
	start(&d, FEATURES, 1);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 0, 40000, 0, 48), VIRTIO_BLK_S_OK);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 0, 40000, 0, 48), VIRTIO_BLK_S_OK);
	unmake(&d);
}

static void test_zeroes_are_detected(void)
{
	struct device d;
	char *data;

	make_started(&d, PV_BLOCK_DETECT_ZEROES | PV_BLOCK_DETECT_UNMAP | PV_BLOCK_UNMAP);
	ones(d.file);
	data = data_at(&d, 0);
	memset(data, 0, DATA);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 8, data, DATA, NULL), VIRTIO_BLK_S_OK);
	check_zero(d.file, 8 * 512, 8 * 512 + DATA);
	CHECK(room(d.file) < SECTORS);
	data[DATA - 1] = 1;
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 8, data, DATA, NULL), VIRTIO_BLK_S_OK);
	check_zero(d.file, 8 * 512, 8 * 512 + DATA - 1);
	CHECK_EQ(room(d.file), SECTORS);
	unmake(&d);
}

/* On a file system without direct I/O there is nothing to see here. */
static void test_direct_io_to_any_buffer(void)
{
	struct pv_block_config config = {.fd = make_file(SECTORS * 512)};
	struct device d;
	uint8_t *status;
	char path[64];
	int direct;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", config.fd);
	direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	close(config.fd);
	if (direct < 0)
		return;
	config.fd = direct;
	CHECK_EQ(pv_block_alignment(direct, &config.offset_align, &config.memory_align), 0);
	CHECK(config.offset_align >= 512 && config.offset_align <= 4096);
	make(&d, &config);
	start(&d, FEATURES, 1);
	for (uint32_t shift = 0; shift < 4; shift++) {
		char *out = data_at(&d, 1024 + shift), *in = data_at(&d, 2 * DATA + 3 * shift);

		fill(out, DATA / 2, shift);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 8 + shift, out, DATA / 2, NULL), 0);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 8 + shift, in, DATA / 2, NULL), 0);
		CHECK_EQ(memcmp(in, out, DATA / 2), 0);
	}
	/* Segments that begin well and end badly. */
	status = status_byte(&d, 0);
	struct part odd[] = {{header(&d, 0, VIRTIO_BLK_T_IN, 8), 16, false},
	                     {data_at(&d, 0), 100, true},
	                     {data_at(&d, 4096), 412, true},
	                     {status, 1, true}};
	offer(&d, &d.queues[0], odd, 4);
	kick(&d.queues[0]);
	WAIT_FOR(used(&d.queues[0]) == d.queues[0].offered);
	CHECK_EQ(*status, VIRTIO_BLK_S_OK);
	unmake(&d);
}

static void test_without_flushes_a_write_is_stable_at_once(void)
{
	struct pv_block_config config = {.fd = open("/dev/zero", O_RDWR | O_CLOEXEC)};
	struct device d;

	/* A character device cannot be synchronised: the error shows that it was tried. */
	make(&d, &config);
	start(&d, 0, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	stop(&d);
	start(&d, FEATURES, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_OK);
	unmake(&d);
}

/* More than the device does in one go, in one segment and in several. */
static void test_large_requests(void)
{
	enum { LARGE = 6 << 20, SEGMENTS = 4 };
	struct pv_block_config config = {.fd = make_file(2 * LARGE), .sectors = 2 * LARGE / 512};
	struct device d;
	struct queue *q = &d.queues[0];
	struct part parts[SEGMENTS + 2];
	char *data, *check = malloc(LARGE);
	uint32_t written;

	make(&d, &config);
	start(&d, FEATURES, 1);
	data = data_at(&d, 2 * DATA);
	fill(data, LARGE, 3);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 1, data, LARGE, NULL), VIRTIO_BLK_S_OK);
	CHECK_EQ(pread(d.file, check, LARGE, 512), LARGE);
	CHECK_EQ(memcmp(check, data, LARGE), 0);
	memset(data, 0, LARGE);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 1, data, LARGE, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, LARGE + 1);
	CHECK_EQ(memcmp(check, data, LARGE), 0);
	memset(data, 0, LARGE);
	parts[0] = (struct part){header(&d, 0, VIRTIO_BLK_T_IN, 1), 16, false};
	for (unsigned i = 0; i < SEGMENTS; i++)
		parts[1 + i] = (struct part){data + i * LARGE / SEGMENTS, LARGE / SEGMENTS, true};
	parts[SEGMENTS + 1] = (struct part){status_byte(&d, 0), 1, true};
	offer(&d, q, parts, SEGMENTS + 2);
	kick(q);
	WAIT_FOR(used(q) == q->offered);
	CHECK_EQ(memcmp(check, data, LARGE), 0);
	unmake(&d);
	free(check);
}

/* As much of what a failed request cannot fill as an honest driver may have asked for. */
static void test_of_a_huge_room_the_beginning_is_written(void)
{
	enum { CLEARED = PV_IOV_CLEAR_BYTES, REST = 1 << 20 };
	static const uint32_t TYPES[] = {VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, 99};
	struct device d;
	struct queue *q = &d.queues[0];

	make_started(&d, 0);
	for (unsigned i = 0; i < sizeof(TYPES) / sizeof(TYPES[0]); i++) {
		char *data = data_at(&d, 2 * DATA);
		uint8_t *status = status_byte(&d, 0);
		struct part parts[] = {{header(&d, 0, TYPES[i], 0), 16, false},
		                       {data, CLEARED + REST, true},
		                       {status, 1, true}};

		memset(data, UNANSWERED, CLEARED + REST);
		offer(&d, q, parts, 3);
		kick(q);
		WAIT_FOR(used(q) == q->offered);
		CHECK_EQ(q->used->ring[(q->offered - 1) % SIZE].len, CLEARED);
		CHECK(*status != UNANSWERED);
		check_bytes(data, CLEARED, 0);
		check_bytes(data + CLEARED, REST, (char)UNANSWERED);
	}
	unmake(&d);
}

static void run_all(void)
{
	RUN(test_what_is_written_is_read_back);
	RUN(test_header_and_data_split_anyhow);
	RUN(test_all_that_is_writable_is_written);
	RUN(test_reads_of_what_the_host_has_in_memory_and_what_not);
	RUN(test_serial_number);
	RUN(test_zeroed_ranges);
	RUN(test_zeroes_are_written_where_ranges_cannot_be);
	RUN(test_zeroes_are_detected);
	RUN(test_direct_io_to_any_buffer);
	RUN(test_without_flushes_a_write_is_stable_at_once);
	RUN(test_large_requests);
	RUN(test_of_a_huge_room_the_beginning_is_written);
}

int main(void)
{
	on_each_engine(run_all);
	return 0;
}
