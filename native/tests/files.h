/* A host that has no descriptors left. */
#ifndef PV_TESTS_FILES_H
#define PV_TESTS_FILES_H

#include <sys/resource.h>

#include "tests/check.h"

struct files {
	struct rlimit before;
};

/* From now on no more than `more` can be opened. */
static inline struct files files_end_behind(unsigned more)
{
	struct files files;
	struct rlimit none;
	int next = dup(0);

	CHECK(next >= 0);
	close(next);
	CHECK_EQ(getrlimit(RLIMIT_NOFILE, &files.before), 0);
	none = files.before;
	none.rlim_cur = (rlim_t)next + more;
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
	return files;
}

static inline struct files files_end(void)
{
	return files_end_behind(0);
}

static inline void files_go_on(struct files files)
{
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &files.before), 0);
}

#endif
