#include "console/escape_internal.h"

const char pv_escape_help[] =
	"\r\n"
	"Ctrl-A X  end the virtual machine\r\n"
	"Ctrl-A B  send a break (Linux: the next key is a SysRq command)\r\n"
	"Ctrl-A A  send Ctrl-A (as Ctrl-A Ctrl-A does)\r\n"
	"Ctrl-A H  this help\r\n";

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
