/* What hangs: a page of memory that whoever touches it waits for (userfaultfd). */
#ifndef PV_TESTS_STUCK_H
#define PV_TESTS_STUCK_H

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "tests/check.h"

/* Make a page of the guest's one that the host's I/O waits for, until `release_page`. */
static inline int hold_page(char *page)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.range = {(uintptr_t)page, 4096},
	                                .mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	CHECK(fd >= 0);
	CHECK_EQ(ioctl(fd, UFFDIO_API, &api), 0);
	CHECK_EQ(madvise(page, 4096, MADV_DONTNEED), 0);
	CHECK_EQ(ioctl(fd, UFFDIO_REGISTER, &range), 0);
	return fd;
}

static inline void release_page(int fd, char *page)
{
	struct uffdio_zeropage range = {.range = {(uintptr_t)page, 4096}};

	CHECK_EQ(ioctl(fd, UFFDIO_ZEROPAGE, &range), 0);
	close(fd);
}

#endif
