#include "sandbox/use.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sandbox/internal.h"

#define FIRST 4 /* the place of a program's first call, behind the check of the architecture */

/* What processes share. */
struct record {
	_Atomic uint8_t used[PV_SANDBOX_LISTS][PV_SANDBOX_LENGTH_MAX];
	_Atomic uint64_t missed[PV_SANDBOX_MISSED_MAX];
};

_Static_assert(sizeof(struct record) == PV_SANDBOX_RECORD_BYTES, "as its readers know it");

static struct record *record;
static uint32_t own_pid;

int pv_sandbox_record(int fd)
{
	void *map = mmap(NULL, sizeof(*record), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return -errno;
	record = map;
	return 0;
}

bool pv_sandbox_is_recorded(void)
{
	return record != NULL;
}

static bool is_apart(uint32_t number)
{
	const unsigned short *apart = pv_sandbox_apart;

	while (*apart && *apart != number)
		apart++;
	return *apart != 0;
}

static bool lets_pass(const struct sock_filter *one)
{
	return one->code == PV_BPF_RETURN && (one->k == SECCOMP_RET_ALLOW ||
	       (one->k & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_ERRNO);
}

void pv_sandbox_watch(int list, struct sock_filter *code)
{
	unsigned next;

	if (!record)
		return;
	own_pid = (uint32_t)getpid();
	/* The comparison with a call's number jumps behind what is said of it. */
	for (unsigned at = FIRST; code[at].code == PV_BPF_EQUAL; at = next) {
		next = at + 1 + code[at].jf;
		for (unsigned i = at + 1; i < next && !is_apart(code[at].k); i++)
			if (lets_pass(&code[i]) && !atomic_load(&record->used[list][i]))
				code[i].k = SECCOMP_RET_TRAP;
	}
}

/* The place of the instruction by which a program ends, of those that bpf.py makes. */
static unsigned judge(const struct sock_filter *code, const struct seccomp_data *data)
{
	uint32_t value = 0;
	unsigned at = 0;

	for (; code[at].code != PV_BPF_RETURN; at++) {
		uint32_t constant = code[at].k == PV_SANDBOX_OWN_PID ? own_pid : code[at].k;

		if (code[at].code == PV_BPF_LOAD)
			memcpy(&value, (const char *)data + code[at].k, sizeof(value));
		else if (code[at].code == PV_BPF_AND)
			value &= constant;
		else
			at += value == constant ? code[at].jt : code[at].jf;
	}
	return at;
}

/* Note the use of an entry; what the list says of the call. */
static uint32_t note(int list, const struct seccomp_data *data)
{
	const struct sock_filter *code = pv_sandbox_programs[list].code;
	unsigned at = judge(code, data);

	if (lets_pass(&code[at]))
		atomic_store(&record->used[list][at], 1);
	return code[at].k;
}

uint32_t pv_sandbox_note(int list, const long *call)
{
	struct seccomp_data data = {.nr = (int)call[0], .arch = AUDIT_ARCH_X86_64};

	for (unsigned i = 0; i < 6; i++)
		data.args[i] = (uint64_t)call[i + 1];
	/* Who starts a thread is under the same. */
	note(PV_SANDBOX_CONTROL, &data);
	return note(list, &data);
}

void pv_sandbox_note_missed(uint64_t key)
{
	for (unsigned i = 0; i < PV_SANDBOX_MISSED_MAX; i++) {
		uint64_t there = 0;

		if (atomic_compare_exchange_strong(&record->missed[i], &there, key) || there == key)
			return;
	}
}
