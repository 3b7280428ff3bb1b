/* Guest memory on its way to a file. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/check.h"
#include "vcpu/memory.h"

enum { PAGE = 4096, PAGES = 3 * 4096 + 5 }; /* more than three windows, and a part of one */

static const uint64_t SIZE = (uint64_t)PAGES * PAGE;

static uint8_t *map(int fd)
{
	int flags = MAP_PRIVATE | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
	uint8_t *start = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);

	CHECK(start != MAP_FAILED);
	return start;
}

static int new_file(void)
{
	int fd = memfd_create("test", 0);

	CHECK(fd >= 0);
	CHECK(ftruncate(fd, (off_t)SIZE) == 0);
	return fd;
}

static uint64_t bytes_there(int fd)
{
	struct stat status;

	CHECK(fstat(fd, &status) == 0);
	return (uint64_t)status.st_blocks * 512;
}

/* A page that begins with zeroes, one that ends with them, one at each end of memory and of a window. */
static const struct {
	uint64_t page;
	unsigned at;
} BYTES[] = {
	{0, 0}, {1, PAGE - 1}, {2, 63}, {3, 64}, {700, 2000}, {4095, 8}, {4096, 9}, {PAGES - 1, PAGE - 1},
};

enum { COUNT = sizeof(BYTES) / sizeof(BYTES[0]) };

static void fill(uint8_t *memory)
{
	for (unsigned i = 0; i < COUNT; i++)
		memory[BYTES[i].page * PAGE + BYTES[i].at] = (uint8_t)(i + 1);
}

static void check_saved(uint8_t *memory, int pagemap)
{
	int fd = new_file();
	uint8_t *saved = map(fd);
	uint64_t written = 7;

	CHECK_EQ(pv_memory_save(memory, SIZE, fd, 0, pagemap, &written), 0);
	CHECK_EQ(written, 7 + COUNT * PAGE);
	CHECK_EQ(bytes_there(fd), COUNT * PAGE);
	CHECK(memcmp(saved, memory, SIZE) == 0);
	munmap(saved, SIZE);
	close(fd);
}

static void test_what_is_not_zero_is_written(void)
{
	uint8_t *memory = map(-1);
	int pagemap = open("/proc/self/pagemap", O_RDONLY), empty = open("/dev/null", O_RDONLY);

	CHECK(pagemap >= 0 && empty >= 0);
	fill(memory);
	check_saved(memory, pagemap);
	check_saved(memory, -1);
	check_saved(memory, empty); /* it has no answer: all is looked at */
	close(pagemap);
	close(empty);
	munmap(memory, SIZE);
}

static void test_a_part_goes_to_its_place(void)
{
	uint8_t *memory = map(-1), *saved;
	int fd = new_file();
	uint64_t written = 0;

	memset(memory, 5, 2 * PAGE);
	CHECK_EQ(pv_memory_save(memory, PAGE, fd, 3 * PAGE, -1, &written), 0);
	saved = map(fd);
	CHECK_EQ(saved[3 * PAGE - 1], 0);
	CHECK_EQ(saved[3 * PAGE], 5);
	CHECK_EQ(saved[4 * PAGE], 0);
	CHECK_EQ(pv_memory_save(memory, 0, fd, 0, -1, &written), 0);
	CHECK_EQ(written, PAGE);
	munmap(saved, SIZE);
	munmap(memory, SIZE);
	close(fd);
}

static void test_a_file_that_cannot_be_written_is_an_error(void)
{
	uint8_t *memory = map(-1);
	int full = open("/dev/full", O_WRONLY), reading = open("/dev/null", O_RDONLY);
	uint64_t written = 0;

	fill(memory);
	CHECK_EQ(pv_memory_save(memory, SIZE, full, 0, -1, &written), -ENOSPC);
	CHECK_EQ(pv_memory_save(memory, SIZE, reading, 0, -1, &written), -EBADF);
	CHECK_EQ(written, 0);
	close(full);
	close(reading);
	munmap(memory, SIZE);
}

int main(void)
{
	RUN(test_what_is_not_zero_is_written);
	RUN(test_a_part_goes_to_its_place);
	RUN(test_a_file_that_cannot_be_written_is_an_error);
	return 0;
}
