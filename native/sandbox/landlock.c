#include "sandbox/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/internal.h"

/* linux/landlock.h, which older headers have less of: rights by their versions. */
#define EXECUTE (UINT64_C(1) << 0)
#define WRITE_FILE (UINT64_C(1) << 1)
#define READ_FILE (UINT64_C(1) << 2)
#define READ_DIR (UINT64_C(1) << 3)
#define REMOVE_DIR (UINT64_C(1) << 4)
#define REMOVE_FILE (UINT64_C(1) << 5)
#define MAKE_CHAR (UINT64_C(1) << 6)
#define MAKE_DIR (UINT64_C(1) << 7)
#define MAKE_REG (UINT64_C(1) << 8)
#define MAKE_SOCK (UINT64_C(1) << 9)
#define MAKE_FIFO (UINT64_C(1) << 10)
#define MAKE_BLOCK (UINT64_C(1) << 11)
#define MAKE_SYM (UINT64_C(1) << 12)
#define REFER (UINT64_C(1) << 13)     /* 2 */
#define TRUNCATE (UINT64_C(1) << 14)  /* 3 */
#define IOCTL_DEV (UINT64_C(1) << 15) /* 5 */

#define FIRST (REFER - 1)
#define READS (READ_FILE | READ_DIR | IOCTL_DEV)
#define WRITES                                                                                     \
	(WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_SYM |      \
	 REFER | TRUNCATE | IOCTL_DEV)
/* What there is to allow of a file that is no folder. */
#define OF_FILES (READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV)

#define VERSION_FLAG 1
#define PATH_BENEATH 1

struct path_beneath {
	uint64_t allowed;
	int32_t parent;
} __attribute__((packed));

static _Atomic int rules = -1; /* a descriptor, to the process's end */
static uint64_t handled;

int pv_landlock_version(void)
{
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0, VERSION_FLAG);

	return version < 0 ? -errno : (int)version;
}

static uint64_t known(int version)
{
	return FIRST | (version >= 2 ? REFER : 0) | (version >= 3 ? TRUNCATE : 0) |
	       (version >= 5 ? IOCTL_DEV : 0);
}

int pv_landlock_begin(void)
{
	int version = pv_landlock_version();
	long fd;

	if (version < 0)
		return version;
	handled = known(version);
	fd = syscall(SYS_landlock_create_ruleset, &handled, sizeof(handled), 0);
	if (fd < 0)
		return -errno;
	atomic_store(&rules, (int)fd);
	return 0;
}

static int add(int fd, uint64_t allowed)
{
	struct path_beneath rule = {.allowed = allowed & handled, .parent = fd};
	struct stat status;

	if (fstat(fd, &status) < 0)
		return -errno;
	if (!S_ISDIR(status.st_mode))
		rule.allowed &= OF_FILES;
	/* A rule that allows nothing is none. */
	if (rule.allowed == 0)
		return 0;
	if (syscall(SYS_landlock_add_rule, atomic_load(&rules), PATH_BENEATH, &rule, 0) < 0)
		return -errno;
	return 0;
}

int pv_landlock_allow(const char *path, int what)
{
	uint64_t allowed = (what & PV_LANDLOCK_READ ? READS : 0) |
	                   (what & PV_LANDLOCK_WRITE ? WRITES : 0) |
	                   (what & PV_LANDLOCK_REMOVE ? REMOVE_FILE : 0);
	int fd = open(path, O_PATH | O_CLOEXEC);
	int result;

	if (fd < 0)
		return -errno;
	result = add(fd, allowed);
	(void)close(fd);
	return result;
}

int pv_landlock_is_on(void)
{
	return atomic_load(&rules) >= 0;
}

int pv_landlock_enter(void)
{
	int fd = atomic_load(&rules);

	if (fd < 0)
		return 0;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return syscall(SYS_landlock_restrict_self, fd, 0) < 0 ? -errno : 0;
}
