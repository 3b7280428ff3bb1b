/* The compiled lists, and what becomes of a call that is on none. */
#ifndef PV_SANDBOX_INTERNAL_H
#define PV_SANDBOX_INTERNAL_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stdint.h>

#include "sandbox/filter.h"

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
/* In PV_SANDBOX_LOG: carry the call out, and let the thread go on with its answer. */
void pv_sandbox_carry_out(void *context, long number);
/* Whether it is the first of such calls of the process, by list, number and second argument. */
bool pv_sandbox_is_new(long number, uint64_t argument);

/* Bind the calling thread to the files of landlock.h, if there are any; -errno. */
int pv_landlock_enter(void);

#endif
