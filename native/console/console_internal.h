/* The device's side of a console. None of these calls waits; all but pv_console_set_device are
 * called under the device's own lock, or by one thread alone. */
#ifndef PV_CONSOLE_INTERNAL_H
#define PV_CONSOLE_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "console/console.h"

/* What the console tells its device, on the console's thread, with no lock held but the one that
 * pv_console_set_device takes. */
enum pv_console_event {
	PV_CONSOLE_INPUT, /* there are new bytes to peek at */
	PV_CONSOLE_ROOM,  /* pv_console_ready would be true again */
	PV_CONSOLE_BREAK, /* the user sends a break */
	PV_CONSOLE_TIMER, /* pv_console_arm's time is over */
};

typedef void (*pv_console_notify)(void *device, enum pv_console_event event);

/* From now on `notify` is called; NULL: nobody. When it returns, the former one no longer runs. */
void pv_console_set_device(struct pv_console *console, pv_console_notify notify, void *device);

/* Output: append a byte. False: the ring was full, and the byte is lost and counted. */
bool pv_console_put(struct pv_console *console, uint8_t byte);

/* Output: whether half of the ring is free. If not, PV_CONSOLE_ROOM comes once it is. */
bool pv_console_ready(struct pv_console *console);

/* Input: the byte `offset` places from the oldest, -EAGAIN if there is none. */
int pv_console_peek(const struct pv_console *console, uint32_t offset);

/* Input: forget the oldest byte, which is there. */
void pv_console_take(struct pv_console *console);

/* Ask for one PV_CONSOLE_TIMER `nanoseconds` from now, instead of any asked for before. */
void pv_console_arm(struct pv_console *console, uint64_t nanoseconds);

#endif
