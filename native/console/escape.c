#include "console/escape_internal.h"

enum pv_escape_action pv_escape_next(bool *held, uint8_t byte)
{
	if (!*held) {
		*held = byte == PV_ESCAPE_PREFIX;
		return *held ? PV_ESCAPE_HOLD : PV_ESCAPE_PASS;
	}
	*held = false;
	switch (byte) {
	case PV_ESCAPE_PREFIX:
	case 'a':
	case 'A':
		return PV_ESCAPE_LITERAL;
	case 'b':
	case 'B':
		return PV_ESCAPE_BREAK;
	case 'h':
	case 'H':
	case '?':
		return PV_ESCAPE_HELP;
	case 'x':
	case 'X':
		return PV_ESCAPE_QUIT;
	default:
		return PV_ESCAPE_PREFIXED;
	}
}
