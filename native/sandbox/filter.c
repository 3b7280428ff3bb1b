#include "sandbox/filter.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "sandbox/internal.h"
#include "sandbox/use.h"

#define SIGSET_BYTES 8 /* the kernel's */
#define SEEN 512 /* different calls that a log tells of */

/* Seccomp's own state is each thread's, but what they are to take is the process's. */
static _Atomic int armed = PV_SANDBOX_OFF;
static _Atomic uint64_t seen[SEEN];
static _Thread_local __attribute__((tls_model("initial-exec"))) int own_list;

/* Carries a call out: its number and arguments are in an array. In the mode that logs, and under a
 * record, the lists allow what is called from here, as they know by the address behind it. */
long pv_sandbox_call(const long *call) __attribute__((visibility("hidden")));
extern const char pv_sandbox_called[] __attribute__((visibility("hidden")));
__asm__(".text\n"
        ".hidden pv_sandbox_call\n"
        ".hidden pv_sandbox_called\n"
        ".globl pv_sandbox_call\n"
        ".globl pv_sandbox_called\n"
        ".type pv_sandbox_call, @function\n"
        "pv_sandbox_call:\n"
        ".cfi_startproc\n"
        "	mov 0(%rdi), %rax\n"
        "	mov 16(%rdi), %rsi\n"
        "	mov 24(%rdi), %rdx\n"
        "	mov 32(%rdi), %r10\n"
        "	mov 40(%rdi), %r8\n"
        "	mov 48(%rdi), %r9\n"
        "	mov 8(%rdi), %rdi\n"
        "	syscall\n"
        "pv_sandbox_called:\n"
        "	ret\n"
        ".cfi_endproc\n"
        ".size pv_sandbox_call, . - pv_sandbox_call\n");

int pv_sandbox_arm(int mode)
{
	uint32_t action = SECCOMP_RET_TRAP;

	if (mode != PV_SANDBOX_OFF &&
	    syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0)
		return -errno;
	/* Another arena would be made, grown and given back by whichever thread comes to it, which
	 * takes mmap, mprotect and a look at a file of /proc. */
	if (mode != PV_SANDBOX_OFF)
		(void)mallopt(M_ARENA_MAX, 1);
	atomic_store(&armed, mode);
	return 0;
}

int pv_sandbox_mode(void)
{
	return atomic_load(&armed);
}

int pv_sandbox_is_entered(void)
{
	return atomic_load(&armed) != PV_SANDBOX_OFF &&
	       prctl(PR_GET_SECCOMP) == SECCOMP_MODE_FILTER;
}

static const struct sock_filter *exempt(struct sock_filter *code, uintptr_t address)
{
	const struct sock_filter lines[] = {
		{PV_BPF_LOAD, 0, 0, offsetof(struct seccomp_data, instruction_pointer)},
		{PV_BPF_EQUAL, 0, 3, (uint32_t)address},
		{PV_BPF_LOAD, 0, 0, offsetof(struct seccomp_data, instruction_pointer) + 4},
		{PV_BPF_EQUAL, 0, 1, (uint32_t)(address >> 32)},
		{PV_BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW},
	};

	memcpy(code, lines, sizeof(lines));
	return code + sizeof(lines) / sizeof(lines[0]);
}

/* The length of a list's program as this process needs it; 0: there is no room. */
static unsigned short prepare(struct sock_filter *code, int list, int mode)
{
	const struct pv_sandbox_program *program = &pv_sandbox_programs[list];
	struct sock_filter *at = code;

	if (mode == PV_SANDBOX_LOG || pv_sandbox_is_recorded())
		at += exempt(code, (uintptr_t)pv_sandbox_called) - code;
	if (program->length > PV_SANDBOX_LENGTH_MAX - (at - code))
		return 0;
	memcpy(at, program->code, program->length * sizeof(*at));
	for (unsigned i = 0; i < program->length; i++)
		if (at[i].code == PV_BPF_EQUAL && at[i].k == PV_SANDBOX_OWN_PID)
			at[i].k = (uint32_t)getpid();
	pv_sandbox_watch(list, at);
	return (unsigned short)(at - code + program->length);
}

int pv_sandbox_enter(int list)
{
	struct sock_filter code[PV_SANDBOX_LENGTH_MAX];
	struct sock_fprog program = {.filter = code};
	int mode = atomic_load(&armed), before = own_list;

	if (mode == PV_SANDBOX_OFF)
		return 0;
	if (list == PV_SANDBOX_CONTROL) {
		int result = pv_landlock_enter();

		if (result < 0)
			return result;
	}
	program.len = prepare(code, list, mode);
	if (program.len == 0)
		return -E2BIG;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	/* First, for the very next call may be one that is not on it. */
	own_list = list;
	/* Whether speculation is to be held back, the host decides for all its processes. */
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
	            &program) < 0) {
		own_list = before;
		return -errno;
	}
	return 0;
}

int pv_sandbox_enter_control(void)
{
	return pv_sandbox_is_entered() ? 0 : pv_sandbox_enter(PV_SANDBOX_CONTROL);
}

const char *pv_sandbox_list_name(void)
{
	return atomic_load(&armed) == PV_SANDBOX_OFF ? "" : pv_sandbox_programs[own_list].name;
}

uint64_t pv_sandbox_argument(const void *context, unsigned index)
{
	static const int PLACES[] = {REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9};
	const ucontext_t *thread = context;

	return (uint64_t)thread->uc_mcontext.gregs[PLACES[index]];
}

void pv_sandbox_answer(void *context, long answer)
{
	ucontext_t *thread = context;

	thread->uc_mcontext.gregs[REG_RAX] = answer;
}

static void copy_call(long *call, const void *context, long number)
{
	call[0] = number;
	for (unsigned i = 0; i < 6; i++)
		call[i + 1] = (long)pv_sandbox_argument(context, i);
}

void pv_sandbox_carry_out(void *context, long number)
{
	const ucontext_t *thread = context;
	/* What may interrupt the call may do so here. */
	long mask[7] = {SYS_rt_sigprocmask, SIG_SETMASK, (long)&thread->uc_sigmask, 0, SIGSET_BYTES};
	long call[7];

	copy_call(call, context, number);
	pv_sandbox_call(mask);
	pv_sandbox_answer(context, pv_sandbox_call(call));
}

long pv_sandbox_ask(long number, long first, long second, long third, long fourth)
{
	long call[7] = {number, first, second, third, fourth};

	if (pv_sandbox_is_recorded())
		pv_sandbox_note(own_list, call);
	return pv_sandbox_call(call);
}

bool pv_sandbox_use(void *context, long number)
{
	uint32_t action;
	long call[7];

	if (!pv_sandbox_is_recorded())
		return false;
	copy_call(call, context, number);
	action = pv_sandbox_note(own_list, call);
	if (action == SECCOMP_RET_ALLOW)
		pv_sandbox_carry_out(context, number);
	else if ((action & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_ERRNO)
		pv_sandbox_answer(context, -(long)(action & SECCOMP_RET_DATA));
	else
		return false;
	return true;
}

bool pv_sandbox_is_new(long number, uint64_t argument)
{
	uint64_t key = UINT64_C(1) << 63 | (uint64_t)own_list << 48 |
	               ((uint64_t)number & 0xffff) << 32 | (argument & UINT32_MAX);

	if (pv_sandbox_is_recorded())
		pv_sandbox_note_missed(key);
	for (unsigned i = 0; i < SEEN; i++) {
		uint64_t there = 0;

		if (atomic_compare_exchange_strong(&seen[i], &there, key))
			return true;
		if (there == key)
			return false;
	}
	return false;
}
