/* Ioctls on a thread: in their order, up to the first that fails. */
#include "vcpu/calls.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tests/check.h"

enum { BYTES = 5, UNKNOWN = 0x7fff };

static void fill(int ends[2])
{
	CHECK_EQ(pipe(ends), 0);
	CHECK_EQ(write(ends[1], "bytes", BYTES), BYTES);
}

static void empty(int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

static void test_all_are_made(void)
{
	int ends[2], found[2] = {0};
	const struct pv_call calls[] = {
		{FIONREAD, (uintptr_t)&found[0]},
		{FIONREAD, (uintptr_t)&found[1]},
	};
	struct pv_calls *made;
	uint32_t failed;

	fill(ends);
	CHECK_EQ(pv_calls_begin(ends[0], calls, 2, &made), 0);
	CHECK_EQ(pv_calls_wait(made, &failed), 0);
	CHECK_EQ(pv_calls_wait(made, &failed), 0);
	pv_calls_free(made);
	CHECK_EQ(found[0], BYTES);
	CHECK_EQ(found[1], BYTES);
	empty(ends);
}

static void test_none_is_made_after_one_that_fails(void)
{
	int ends[2], found[2] = {0};
	const struct pv_call calls[] = {
		{FIONREAD, (uintptr_t)&found[0]},
		{UNKNOWN, 0},
		{FIONREAD, (uintptr_t)&found[1]},
	};
	struct pv_calls *made;
	uint32_t failed;

	fill(ends);
	CHECK_EQ(pv_calls_begin(ends[0], calls, 3, &made), 0);
	CHECK_EQ(pv_calls_wait(made, &failed), -ENOTTY);
	CHECK_EQ(failed, 1);
	pv_calls_free(made);
	CHECK_EQ(found[0], BYTES);
	CHECK_EQ(found[1], 0);
	empty(ends);
}

static void test_no_descriptor_and_nobody_who_waits(void)
{
	const struct pv_call call = {FIONREAD, 0};
	struct pv_calls *made;
	uint32_t failed;

	CHECK_EQ(pv_calls_begin(-1, &call, 1, &made), 0);
	CHECK_EQ(pv_calls_wait(made, &failed), -EBADF);
	CHECK_EQ(failed, 0);
	pv_calls_free(made);
	CHECK_EQ(pv_calls_begin(-1, &call, 1, &made), 0);
	pv_calls_free(made);
	CHECK_EQ(pv_calls_begin(-1, &call, 0, &made), 0);
	CHECK_EQ(pv_calls_wait(made, &failed), 0);
	pv_calls_free(made);
	pv_calls_free(NULL);
}

int main(void)
{
	RUN(test_all_are_made);
	RUN(test_none_is_made_after_one_that_fails);
	RUN(test_no_descriptor_and_nobody_who_waits);
	return 0;
}
