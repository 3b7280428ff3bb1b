/* Where vCPU threads stand while the guest is paused, and how others wait for them.
 *
 * A gate is closed, open or ended; it begins closed. vCPU threads enter it, pass it before each
 * stretch of running and leave it at their end; any other thread closes, opens or ends it. */
#ifndef PV_GATE_H
#define PV_GATE_H

#include <stdint.h>

struct pv_gate;

/* -ENOMEM. Freed when no thread is inside. */
int pv_gate_new(struct pv_gate **out);
void pv_gate_free(struct pv_gate *gate);

/* By a vCPU thread. pv_gate_pass waits while the gate is closed; 1: run on, 0: the gate has ended,
 * leave. pv_gate_enter is called for the thread by who starts it. */
void pv_gate_enter(struct pv_gate *gate);
int pv_gate_pass(struct pv_gate *gate);
void pv_gate_leave(struct pv_gate *gate);

void pv_gate_open(struct pv_gate *gate);
void pv_gate_close(struct pv_gate *gate);
/* For good: closing or opening has no effect after it. */
void pv_gate_end(struct pv_gate *gate);

/* Wait until every thread inside stands at the closed gate, or it is not closed any more. */
void pv_gate_wait_parked(struct pv_gate *gate);
/* Wait until every thread has left. */
void pv_gate_wait_left(struct pv_gate *gate);

#endif
