/* The compiled lists, and what becomes of a call that is on none. */
#ifndef PV_SANDBOX_INTERNAL_H
#define PV_SANDBOX_INTERNAL_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stdint.h>

#include "sandbox/filter.h"

/* All that bpf.py makes programs of. */
#define PV_BPF_LOAD (BPF_LD | BPF_W | BPF_ABS)
#define PV_BPF_AND (BPF_ALU | BPF_AND | BPF_K)
#define PV_BPF_EQUAL (BPF_JMP | BPF_JEQ | BPF_K)
#define PV_BPF_RETURN (BPF_RET | BPF_K)

/* A constant of a program that stands for the process's id. */
#define PV_SANDBOX_OWN_PID 0x50564944u

struct pv_sandbox_program {
	const char *name;
	const struct sock_filter *code;
	unsigned short length;
};

/* By enum pv_sandbox_list; generate.py makes it. */
extern const struct pv_sandbox_program pv_sandbox_programs[PV_SANDBOX_LISTS];

/* By numbers; NULL: none has this one. */
const char *pv_sandbox_call_name(long number);
/* The calling thread's list, "" without one. */
const char *pv_sandbox_list_name(void);

/* Of SIGSYS's ucontext_t: argument `index` of the call, 0 to 5. */
uint64_t pv_sandbox_argument(const void *context, unsigned index);
/* Make a call, which is listed, on behalf of the thread that ends by a signal: it is never told of by
 * another. Returns what the kernel does. */
long pv_sandbox_ask(long number, long first, long second, long third, long fourth);
/* In PV_SANDBOX_LOG: carry the call out, and let the thread go on with its answer. */
void pv_sandbox_carry_out(void *context, long number);
/* Let the thread go on as if the kernel had answered this. */
void pv_sandbox_answer(void *context, long answer);
/* Under a record: if the call is on the thread's list note that, carry it out, and return true. */
bool pv_sandbox_use(void *context, long number);
/* Whether it is the first of such calls of the process, by list, number and second argument. */
bool pv_sandbox_is_new(long number, uint64_t argument);

/* Bind the calling thread to the files of landlock.h, if there are any; -errno. */
int pv_landlock_enter(void);

/* The numbers of calls that no record can have, to 0; generate.py makes it. */
extern const unsigned short pv_sandbox_apart[];

/* Of a record (use.h). Whether there is one. */
bool pv_sandbox_is_recorded(void);
/* Have a copy of a list's program tell of the calls that nobody has made so far. */
void pv_sandbox_watch(int list, struct sock_filter *code);
/* Note that a thread of a list makes a call, number and arguments in an array; what the list says of
 * it, SECCOMP_RET_. */
uint32_t pv_sandbox_note(int list, const long *call);
/* Note a call that is on no list, by the key of use.h. */
void pv_sandbox_note_missed(uint64_t key);

#endif
