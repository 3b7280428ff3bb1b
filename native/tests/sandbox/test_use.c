/* What a record says of calls, and which of a list's entries are told of while it is kept. */
#include "sandbox/use.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/internal.h"
#include "tests/check.h"

static uint8_t *used; /* the record */
static uint64_t *missed;

static uint32_t note(int list, long number, long first, long second, long third)
{
	const long call[7] = {number, first, second, third};

	return pv_sandbox_note(list, call);
}

static unsigned marks(unsigned list)
{
	unsigned count = 0;

	for (unsigned i = 0; i < PV_SANDBOX_LENGTH_MAX; i++)
		count += used[list * PV_SANDBOX_LENGTH_MAX + i] != 0;
	return count;
}

static void make_record(void)
{
	int fd = memfd_create("record", MFD_CLOEXEC);
	void *map;

	CHECK_EQ(pv_sandbox_is_recorded(), false);
	CHECK_EQ(pv_sandbox_record(-1), -EBADF);
	CHECK_EQ(pv_sandbox_is_recorded(), false);
	CHECK_EQ(ftruncate(fd, PV_SANDBOX_RECORD_BYTES), 0);
	CHECK_EQ(pv_sandbox_record(fd), 0);
	CHECK_EQ(pv_sandbox_is_recorded(), true);
	map = mmap(NULL, PV_SANDBOX_RECORD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	used = map;
	missed = (uint64_t *)(void *)(used + PV_SANDBOX_LISTS * PV_SANDBOX_LENGTH_MAX);
	close(fd);
}

/* What the list of a thread says of them, by all that it looks at. */
static void test_calls_are_judged_and_noted(void)
{
	const long thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
	                    CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	static struct sock_filter code[PV_SANDBOX_LENGTH_MAX];

	memcpy(code, pv_sandbox_programs[PV_SANDBOX_CONTROL].code,
	       pv_sandbox_programs[PV_SANDBOX_CONTROL].length * sizeof(code[0]));
	pv_sandbox_watch(PV_SANDBOX_CONTROL, code);
	CHECK_EQ(note(PV_SANDBOX_CONTROL, SYS_execve, 0, 0, 0), SECCOMP_RET_TRAP);
	CHECK_EQ(note(PV_SANDBOX_CONTROL, SYS_mmap, 0, 4096, PROT_READ), SECCOMP_RET_ALLOW);
	CHECK_EQ(marks(PV_SANDBOX_CONTROL), 1);
	CHECK_EQ(note(PV_SANDBOX_CONTROL, SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE),
	         SECCOMP_RET_ALLOW);
	CHECK_EQ(marks(PV_SANDBOX_CONTROL), 1);
	CHECK_EQ(note(PV_SANDBOX_CONTROL, SYS_mmap, 0, 4096, PROT_READ | PROT_EXEC),
	         SECCOMP_RET_ERRNO | EPERM);
	CHECK_EQ(marks(PV_SANDBOX_CONTROL), 2);
	CHECK_EQ(note(PV_SANDBOX_CONTROL, SYS_clone, thread, 0, 0), SECCOMP_RET_ALLOW);
	CHECK_EQ(note(PV_SANDBOX_CONTROL, SYS_clone, thread | CLONE_NEWNET, 0, 0), SECCOMP_RET_TRAP);
	CHECK_EQ(note(PV_SANDBOX_CONTROL, SYS_tgkill, getpid(), 1, 1), SECCOMP_RET_ALLOW);
	CHECK_EQ(note(PV_SANDBOX_CONTROL, SYS_tgkill, getppid(), 1, 1), SECCOMP_RET_TRAP);
	CHECK_EQ(marks(PV_SANDBOX_CONTROL), 4);
}

/* Who starts a thread is under the same: what that does CONTROL has to allow. */
static void test_a_threads_calls_are_controls_too(void)
{
	unsigned before = marks(PV_SANDBOX_CONTROL);

	CHECK_EQ(marks(PV_SANDBOX_RNG), 0);
	CHECK_EQ(note(PV_SANDBOX_RNG, SYS_readv, 0, 0, 0), SECCOMP_RET_ALLOW);
	CHECK_EQ(marks(PV_SANDBOX_RNG), 1);
	CHECK_EQ(marks(PV_SANDBOX_CONTROL), before + 1);
}

/* How many instructions of a copy tell of a call that the list lets pass. */
static unsigned watched(int list)
{
	static struct sock_filter code[PV_SANDBOX_LENGTH_MAX];
	const struct pv_sandbox_program *program = &pv_sandbox_programs[list];
	unsigned count = 0;

	memcpy(code, program->code, program->length * sizeof(code[0]));
	pv_sandbox_watch(list, code);
	for (unsigned i = 0; i < program->length; i++)
		count += code[i].k != program->code[i].k;
	return count;
}

static void test_what_was_used_is_told_of_no_more(void)
{
	unsigned before = watched(PV_SANDBOX_NET);

	CHECK(before > 2);
	CHECK_EQ(note(PV_SANDBOX_NET, SYS_ppoll, 0, 0, 0), SECCOMP_RET_ALLOW);
	CHECK_EQ(watched(PV_SANDBOX_NET), before - 1);
	CHECK_EQ(note(PV_SANDBOX_NET, SYS_ppoll, 0, 0, 0), SECCOMP_RET_ALLOW);
	CHECK_EQ(watched(PV_SANDBOX_NET), before - 1);
	/* What no record can be sure to have is not told of. */
	CHECK_EQ(note(PV_SANDBOX_NET, SYS_rt_sigprocmask, 0, 0, 0), SECCOMP_RET_ALLOW);
	CHECK_EQ(watched(PV_SANDBOX_NET), before - 1);
}

static void test_what_is_missed_is_kept_once(void)
{
	for (unsigned i = 0; i < 3; i++) {
		pv_sandbox_note_missed(UINT64_C(1) << 63 | 7);
		pv_sandbox_note_missed(UINT64_C(1) << 63 | 8);
	}
	CHECK_EQ(missed[0], UINT64_C(1) << 63 | 7);
	CHECK_EQ(missed[1], UINT64_C(1) << 63 | 8);
	CHECK_EQ(missed[2], 0);
	/* There is room for so many, and no more. */
	for (uint64_t i = 1; i < 2 * PV_SANDBOX_MISSED_MAX; i++)
		pv_sandbox_note_missed(UINT64_C(1) << 62 | i);
	CHECK_EQ(missed[PV_SANDBOX_MISSED_MAX - 1], UINT64_C(1) << 62 | (PV_SANDBOX_MISSED_MAX - 2));
}

int main(void)
{
	make_record();
	RUN(test_calls_are_judged_and_noted);
	RUN(test_a_threads_calls_are_controls_too);
	RUN(test_what_was_used_is_told_of_no_more);
	RUN(test_what_is_missed_is_kept_once);
	return 0;
}
