/* The threads of this process. */
#ifndef PV_TESTS_THREADS_H
#define PV_TESTS_THREADS_H

#include <dirent.h>

#include "tests/check.h"

/* Those of its tools, such as a sanitizer's, among them. */
static inline unsigned threads(void)
{
	DIR *folder = opendir("/proc/self/task");
	unsigned count = 0;

	CHECK(folder);
	while (readdir(folder))
		count++;
	closedir(folder);
	return count - 2;
}

#endif
