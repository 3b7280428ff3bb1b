/* A library's own functions, for a test that has others of the same names. */
#ifndef PV_TESTS_BLOCK_LIBRARY_H
#define PV_TESTS_BLOCK_LIBRARY_H

#include <dlfcn.h>

#include "tests/check.h"

static inline void *library(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);

	CHECK(found);
	return found;
}

#define CALL(name, type, ...) (*(type *)&(void *){library(name)})(__VA_ARGS__)

#endif
