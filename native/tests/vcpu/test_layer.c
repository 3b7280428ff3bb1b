/* Guest memory in layers: what was written since it was mapped is a file of its own, and on top of
 * the others it is what was there. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/check.h"
#include "vcpu/memory.h"

enum { PAGE = 4096, PAGES = 4096 + 13, BYTES = (PAGES + 7) / 8 };

static const uint64_t SIZE = (uint64_t)PAGES * PAGE;
static uint64_t state = 88172645463325252;

static uint64_t next_random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 11;
}

static uint8_t *map(int fd)
{
	uint8_t *start = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	CHECK(start != MAP_FAILED);
	return start;
}

static int new_file(void)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	CHECK(fd >= 0);
	CHECK_EQ(ftruncate(fd, (off_t)SIZE), 0);
	return fd;
}

/* Runs of all lengths; some pages are zeroed, of others one byte changes. */
static void write_at_random(uint8_t *memory, uint8_t *model, unsigned runs)
{
	for (unsigned i = 0; i < runs; i++) {
		uint64_t first = next_random() % PAGES, most = PAGES - first;
		uint64_t count = 1 + next_random() % (i % 8 ? 3 : 100);
		int byte = (int)(next_random() % 4);

		for (uint64_t page = first; page < first + (count < most ? count : most); page++) {
			memset(memory + page * PAGE, byte, PAGE);
			memory[page * PAGE + 5] = (uint8_t)(byte ? i : 0);
			model[page / 8] |= (uint8_t)(1U << page % 8);
		}
	}
}

static int save(uint8_t *memory, int pagemap, uint8_t *own)
{
	int fd = new_file();
	uint64_t written = 0;

	memset(own, 0, BYTES);
	CHECK_EQ(pv_memory_save_own(memory, SIZE, fd, 0, pagemap, 0, own, &written), 0);
	return fd;
}

static unsigned count_maps(void)
{
	FILE *file = fopen("/proc/self/maps", "re");
	unsigned count = 0;

	CHECK(file);
	for (int c; (c = fgetc(file)) != EOF;)
		count += c == '\n';
	fclose(file);
	return count;
}

static void test_layers(void)
{
	static const uint32_t MAPS[] = {0, 1, 10, 100000};
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), base = new_file();
	int files[3];
	static uint8_t own[3][BYTES], model[BYTES];
	uint8_t *memory = map(base);

	CHECK(pagemap >= 0);
	write_at_random(memory, model, 100);
	CHECK_EQ(pwrite(base, memory, SIZE, 0), (ssize_t)SIZE);
	munmap(memory, SIZE);
	memory = map(base);
	for (unsigned layer = 0; layer < 3; layer++) {
		uint64_t sum = 0;

		for (uint64_t page = 0; page < PAGES; page++)
			sum += memory[page * PAGE]; /* to read makes no page ours */
		CHECK(sum > 0);
		memset(model, 0, BYTES);
		write_at_random(memory, model, 60);
		files[layer] = save(memory, pagemap, own[layer]);
		CHECK_EQ(memcmp(own[layer], model, BYTES), 0);
		for (unsigned i = 0; i < sizeof(MAPS) / sizeof(MAPS[0]); i++) {
			uint8_t *again = map(base);
			unsigned before = count_maps();

			for (unsigned below = 0; below <= layer; below++)
				CHECK_EQ(pv_memory_put(again, SIZE, files[below], own[below],
				                       MAPS[i]), 0);
			CHECK_EQ(memcmp(again, memory, SIZE), 0);
			/* Each may cut another one in two. */
			CHECK(count_maps() <= before + 2 * MAPS[i] * (layer + 1));
			munmap(again, SIZE);
		}
		munmap(memory, SIZE);
		memory = map(base);
		for (unsigned below = 0; below <= layer; below++)
			CHECK_EQ(pv_memory_put(memory, SIZE, files[below], own[below], 100000), 0);
	}
	munmap(memory, SIZE);
	for (unsigned layer = 0; layer < 3; layer++)
		close(files[layer]);
	close(base);
	close(pagemap);
}

static void test_memory_that_began_as_zeroes(void)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), fd = new_file();
	uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static uint8_t own[BYTES], wanted[BYTES];
	uint64_t written = 0;

	CHECK(memory != MAP_FAILED);
	memory[3 * PAGE] = 0;
	memory[9 * PAGE] = 1;
	wanted[1] = 2;
	CHECK_EQ(pv_memory_save_own(memory, SIZE, fd, 0, pagemap, 1, own, &written), 0);
	CHECK_EQ(memcmp(own, wanted, BYTES), 0);
	CHECK_EQ(written, PAGE);
	munmap(memory, SIZE);
	close(fd);
	close(pagemap);
}

static void test_what_cannot_be_told_is_refused(void)
{
	int empty = open("/dev/null", O_RDONLY | O_CLOEXEC), fd = new_file();
	static uint8_t own[BYTES];
	uint8_t *memory = map(fd);
	uint64_t written = 0;

	CHECK_EQ(pv_memory_save_own(memory, SIZE, fd, 0, empty, 0, own, &written), -ENODATA);
	CHECK_EQ(pv_memory_save_own(memory, SIZE, fd, 0, -1, 0, own, &written), -ENODATA);
	munmap(memory, SIZE);
	close(fd);
	close(empty);
}

/* What a bitmap says beyond the last page, and of runs that begin or end within a byte of it. */
static void test_pages_at_the_edges_of_bytes(void)
{
	enum { FEW = 20, MORE = 24 };
	static const struct {
		uint8_t own[MORE / 8];
		char expected[MORE + 1];
	} CASES[] = {
		{{0xf0, 0xff, 0xf5}, "....#############.#....."},
		{{0x01, 0x80, 0xff}, "#..............#####...."},
	};
	int fd = new_file();
	uint8_t *file = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	CHECK(file != MAP_FAILED);
	memset(file, '#', MORE * PAGE);
	for (unsigned i = 0; i < 8; i++) {
		uint8_t *memory = map(fd);

		memset(memory, '.', MORE * PAGE);
		CHECK_EQ(pv_memory_put(memory, FEW * PAGE, fd, CASES[i % 2].own, i / 2), 0);
		for (unsigned page = 0; page < MORE; page++)
			CHECK_EQ(memory[page * PAGE], CASES[i % 2].expected[page]);
		munmap(memory, SIZE);
	}
	munmap(file, SIZE);
	close(fd);
}

static void test_files_that_fail(void)
{
	static uint8_t own[BYTES];
	int fd = new_file();
	uint8_t *memory = map(fd);

	own[1] = 0xf0;
	CHECK_EQ(ftruncate(fd, 13 * PAGE), 0);
	CHECK_EQ(pv_memory_put(memory, SIZE, fd, own, 0), -EIO);
	CHECK_EQ(pv_memory_put(memory, SIZE, -1, own, 0), -EBADF);
	CHECK_EQ(pv_memory_put(memory, SIZE, -1, own, 1), -EBADF);
	own[1] = 0;
	CHECK_EQ(pv_memory_put(memory, SIZE, -1, own, 1), 0);
	munmap(memory, SIZE);
	close(fd);
}

int main(void)
{
	RUN(test_layers);
	RUN(test_memory_that_began_as_zeroes);
	RUN(test_what_cannot_be_told_is_refused);
	RUN(test_pages_at_the_edges_of_bytes);
	RUN(test_files_that_fail);
	return 0;
}
