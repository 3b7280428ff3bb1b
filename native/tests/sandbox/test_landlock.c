/* Rules of files: what cannot be one, and what is left open; in processes of their own. */
#include "sandbox/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/internal.h"
#include "tests/process.h"

/* The set of rules may have any number, also the first that there is. */
static void bind_oneself(void)
{
	char pipe_path[32];
	unsigned before;
	int ends[2];

	CHECK_EQ(pv_landlock_is_on(), 0);
	CHECK_EQ(pv_landlock_enter(), 0);
	CHECK_EQ(pipe(ends), 0);
	snprintf(pipe_path, sizeof(pipe_path), "/proc/self/fd/%d", ends[0]);
	close(0);
	CHECK_EQ(pv_landlock_begin(), 0);
	CHECK_EQ(pv_landlock_is_on(), 1);
	before = descriptors();
	CHECK_EQ(pv_landlock_allow("/dev/null", PV_LANDLOCK_READ | PV_LANDLOCK_WRITE), 0);
	CHECK_EQ(pv_landlock_allow("/dev/none", PV_LANDLOCK_READ), -ENOENT);
	/* It is in no folder. */
	CHECK_EQ(pv_landlock_allow(pipe_path, PV_LANDLOCK_READ), -EBADFD);
	CHECK_EQ(descriptors(), before);
	CHECK_EQ(pv_landlock_enter(), 0);
	CHECK(open("/dev/null", O_RDWR | O_CLOEXEC) >= 0);
	CHECK(open("/dev/zero", O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES);
}

static void test_rules(void)
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (child == 0) {
		bind_oneself();
		_exit(0);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
}

int main(void)
{
	RUN(test_rules);
	return 0;
}
