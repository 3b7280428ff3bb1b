/* The keys that mean something to the monitor and not to the guest: Ctrl-A and one more. */
#ifndef PV_ESCAPE_INTERNAL_H
#define PV_ESCAPE_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#define PV_ESCAPE_PREFIX 0x01 /* Ctrl-A */

enum pv_escape_action {
	PV_ESCAPE_PASS,     /* the byte is the guest's */
	PV_ESCAPE_HOLD,     /* a prefix: nothing yet */
	PV_ESCAPE_LITERAL,  /* the prefix alone is the guest's */
	PV_ESCAPE_PREFIXED, /* not ours after all: the prefix and the byte are the guest's */
	PV_ESCAPE_QUIT,
	PV_ESCAPE_BREAK,
	PV_ESCAPE_HELP,
};

/* What PV_ESCAPE_HELP asks for. */
extern const char pv_escape_help[];

/* What to do with the next byte of input; `held` is the state, false at first. */
enum pv_escape_action pv_escape_next(bool *held, uint8_t byte);

#endif
