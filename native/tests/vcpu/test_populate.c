/* Memory that the host is asked to provide at once. */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/check.h"
#include "vcpu/memory.h"

enum { POPULATE_WRITE = 23 }; /* MADV_POPULATE_WRITE, which older headers lack */
enum { PAGE = 4096, PAGES = 9 * 1024 + 3 }; /* more than two pieces, and a part of one */

static bool is_old;              /* the kernel: it does not know MADV_POPULATE_WRITE */
static atomic_int interruptions; /* to come */

int madvise(void *start, size_t size, int advice)
{
	int left;

	if (advice == POPULATE_WRITE && is_old) {
		errno = EINVAL;
		return -1;
	}
	if (size > 0 && (left = atomic_fetch_sub(&interruptions, 1)) > 0) {
		errno = left % 2 ? EINTR : EAGAIN;
		return -1;
	}
	return (int)syscall(SYS_madvise, start, size, advice);
}

static char *map(int protection)
{
	char *start = mmap(NULL, (size_t)PAGES * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(start != MAP_FAILED);
	return start;
}

static unsigned resident(char *start)
{
	static unsigned char pages[PAGES];
	unsigned count = 0;

	CHECK(mincore(start, (size_t)PAGES * PAGE, pages) == 0);
	for (unsigned i = 0; i < PAGES; i++)
		count += pages[i] & 1;
	return count;
}

static void check_all_is_there(void)
{
	for (unsigned threads = 0; threads < 40; threads += 13) {
		char *start = map(PROT_READ | PROT_WRITE);

		start[5 * PAGE] = 7;
		CHECK_EQ(pv_memory_populate(start, (uint64_t)PAGES * PAGE, threads), 0);
		CHECK_EQ(resident(start), PAGES);
		CHECK_EQ(start[5 * PAGE], 7);
		munmap(start, (size_t)PAGES * PAGE);
	}
}

static void test_all_of_it_is_there(void)
{
	check_all_is_there();
	atomic_store(&interruptions, 9);
	check_all_is_there();
	CHECK(atomic_load(&interruptions) <= 0);
}

/* By a write to each page. */
static void test_an_older_kernel(void)
{
	is_old = true;
	check_all_is_there();
	is_old = false;
}

static void test_what_cannot_be_written_is_an_error(void)
{
	char *start = map(PROT_READ | PROT_WRITE);

	CHECK(mprotect(start + (size_t)8000 * PAGE, PAGE, PROT_READ) == 0);
	CHECK_EQ(pv_memory_populate(start, (uint64_t)PAGES * PAGE, 4), -EINVAL);
	munmap(start, (size_t)PAGES * PAGE);
}

static void test_nothing_is_nothing(void)
{
	CHECK_EQ(pv_memory_populate(NULL, 0, 4), 0);
}

int main(void)
{
	RUN(test_all_of_it_is_there);
	RUN(test_an_older_kernel);
	RUN(test_what_cannot_be_written_is_an_error);
	RUN(test_nothing_is_nothing);
	return 0;
}
