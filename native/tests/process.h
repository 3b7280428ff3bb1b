/* What this process has. */
#ifndef PV_TESTS_PROCESS_H
#define PV_TESTS_PROCESS_H

#include <dirent.h>

#include "tests/check.h"

static inline unsigned entries(const char *path)
{
	DIR *folder = opendir(path);
	unsigned count = 0;

	CHECK(folder);
	while (readdir(folder))
		count++;
	closedir(folder);
	return count - 2;
}

/* Those of its tools, such as a sanitizer's, among them. */
static inline unsigned threads(void)
{
	return entries("/proc/self/task");
}

/* With the one that counts them. */
static inline unsigned descriptors(void)
{
	return entries("/proc/self/fd");
}

#endif
