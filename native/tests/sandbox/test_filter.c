/* A list is taken once, however often a thread is asked to; in a process of its own, as it is for good. */
#include "sandbox/filter.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/check.h"

static int filters(void)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[256];
	int count = -1;

	CHECK(file);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "Seccomp_filters: %d", &count) == 1)
			break;
	fclose(file);
	return count;
}

static void in_a_child(void (*test)(void))
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (child == 0) {
		test();
		_exit(0);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
}

static void take_it_twice(void)
{
	int before = filters();

	CHECK_EQ(pv_sandbox_arm(PV_SANDBOX_ON), 0);
	CHECK_EQ(pv_sandbox_mode(), PV_SANDBOX_ON);
	CHECK_EQ(pv_sandbox_enter_control(), 0);
	CHECK_EQ(pv_sandbox_is_entered(), 1);
	CHECK_EQ(pv_sandbox_enter_control(), 0);
	CHECK_EQ(filters(), before + 1);
}

static void take_none(void)
{
	int before = filters();

	CHECK_EQ(pv_sandbox_enter_control(), 0);
	CHECK_EQ(pv_sandbox_is_entered(), 0);
	CHECK_EQ(filters(), before);
}

static void test_a_list_is_taken_once(void)
{
	in_a_child(take_it_twice);
	in_a_child(take_none);
}

int main(void)
{
	RUN(test_a_list_is_taken_once);
	return 0;
}
