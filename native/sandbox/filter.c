#include "sandbox/filter.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "sandbox/internal.h"

#define LENGTH_MAX 512
#define SEEN 512 /* different calls that a log tells of */
#define EQUAL (BPF_JMP | BPF_JEQ | BPF_K)

/* Seccomp's own state is each thread's, but what they are to take is the process's. */
static _Atomic int armed = PV_SANDBOX_OFF;
static _Atomic uint64_t seen[SEEN];
static _Thread_local __attribute__((tls_model("initial-exec"))) int own_list;

/* Carries a call out: its number and arguments are in an array. In the mode that logs, the lists
 * allow what is called from here, as they know by the address behind the instruction. */
long pv_sandbox_call(const long *call) __attribute__((visibility("hidden")));
extern const char pv_sandbox_called[] __attribute__((visibility("hidden")));
__asm__(".text\n"
        ".hidden pv_sandbox_call\n"
        ".hidden pv_sandbox_called\n"
        ".globl pv_sandbox_call\n"
        ".globl pv_sandbox_called\n"
        ".type pv_sandbox_call, @function\n"
        "pv_sandbox_call:\n"
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
        ".size pv_sandbox_call, . - pv_sandbox_call\n");

int pv_sandbox_arm(int mode)
{
	uint32_t action = SECCOMP_RET_TRAP;

	if (mode != PV_SANDBOX_OFF &&
	    syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0)
		return -errno;
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
		{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, instruction_pointer)},
		{EQUAL, 0, 3, (uint32_t)address},
		{BPF_LD | BPF_W | BPF_ABS, 0, 0,
	         offsetof(struct seccomp_data, instruction_pointer) + 4},
		{EQUAL, 0, 1, (uint32_t)(address >> 32)},
		{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
	};

	memcpy(code, lines, sizeof(lines));
	return code + sizeof(lines) / sizeof(lines[0]);
}

/* The length of a list's program as this process needs it; 0: there is no room. */
static unsigned short prepare(struct sock_filter *code, const struct pv_sandbox_program *program,
                              int mode)
{
	struct sock_filter *at = code;

	if (mode == PV_SANDBOX_LOG)
		at += exempt(code, (uintptr_t)pv_sandbox_called) - code;
	if (program->length > LENGTH_MAX - (at - code))
		return 0;
	for (unsigned i = 0; i < program->length; i++) {
		*at = program->code[i];
		if (at->code == EQUAL && at->k == PV_SANDBOX_OWN_PID)
			at->k = (uint32_t)getpid();
		at++;
	}
	return (unsigned short)(at - code);
}

int pv_sandbox_enter(int list)
{
	struct sock_filter code[LENGTH_MAX];
	struct sock_fprog program = {.filter = code};
	int mode = atomic_load(&armed);

	if (mode == PV_SANDBOX_OFF)
		return 0;
	if (list == PV_SANDBOX_CONTROL) {
		int result = pv_landlock_enter();

		if (result < 0)
			return result;
	}
	program.len = prepare(code, &pv_sandbox_programs[list], mode);
	if (program.len == 0)
		return -E2BIG;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	/* Whether speculation is to be held back, the host decides for all its processes. */
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
	            &program) < 0)
		return -errno;
	own_list = list;
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

void pv_sandbox_carry_out(void *context, long number)
{
	ucontext_t *thread = context;
	long call[7] = {number};

	for (unsigned i = 0; i < 6; i++)
		call[i + 1] = (long)pv_sandbox_argument(context, i);
	thread->uc_mcontext.gregs[REG_RAX] = pv_sandbox_call(call);
}

bool pv_sandbox_is_new(long number, uint64_t argument)
{
	uint64_t key = UINT64_C(1) << 63 | (uint64_t)own_list << 48 |
	               ((uint64_t)number & 0xffff) << 32 | (argument & UINT32_MAX);

	for (unsigned i = 0; i < SEEN; i++) {
		uint64_t there = 0;

		if (atomic_compare_exchange_strong(&seen[i], &there, key))
			return true;
		if (there == key)
			return false;
	}
	return false;
}
