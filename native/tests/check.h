/* What every C test uses: checks that end the program with a line that says where and why, and
 * waiting with a limit. */
#ifndef PV_TESTS_CHECK_H
#define PV_TESTS_CHECK_H

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);    \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

/* For integers of any kind, shown in both bases when they differ. */
#define CHECK_EQ(actual, expected)                                                                 \
	do {                                                                                       \
		long long actual_ = (long long)(actual), expected_ = (long long)(expected);        \
		if (actual_ != expected_) {                                                        \
			fprintf(stderr, "%s:%d: %s is %lld (%#llx), not %lld (%#llx)\n", __FILE__, \
			        __LINE__, #actual, actual_, (unsigned long long)actual_,           \
			        expected_, (unsigned long long)expected_);                         \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

#define RUN(test)                                                                                  \
	do {                                                                                       \
		fprintf(stderr, "%s\n", #test);                                                    \
		test();                                                                            \
	} while (0)

/* Wait until `condition` holds once, looking every 100 microseconds, for ten seconds at least. */
#define WAIT_FOR(condition)                                                                        \
	do {                                                                                       \
		int tries_ = 100000;                                                               \
		while (!(condition)) {                                                             \
			usleep(100);                                                               \
			if (tries_-- == 0)                                                         \
				CHECK(condition);                                                  \
		}                                                                                  \
	} while (0)

static inline int readable(int fd, int timeout_ms)
{
	struct pollfd pollfd = {.fd = fd, .events = POLLIN};

	return poll(&pollfd, 1, timeout_ms) == 1;
}

static inline uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Read exactly `size` bytes, waiting at most ten seconds for each piece. */
static inline void read_all(int fd, void *data, size_t size)
{
	uint8_t *at = data;

	while (size > 0) {
		ssize_t count;

		CHECK(readable(fd, 10000));
		count = read(fd, at, size);
		CHECK(count > 0);
		at += count;
		size -= (size_t)count;
	}
}

static inline void write_all(int fd, const void *data, size_t size)
{
	const uint8_t *at = data;

	while (size > 0) {
		ssize_t count = write(fd, at, size);

		CHECK(count > 0);
		at += count;
		size -= (size_t)count;
	}
}

#endif
