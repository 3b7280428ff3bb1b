/* Prints a text on COM1, waiting for room before each byte, and ends with status 42. */
#include "guest.h"

#define COM1 0x3f8
#define LINE_STATUS (COM1 + 5)
#define TRANSMITTER_HAS_ROOM 0x20

	.globl _start
_start:
	mov $text, %esi
print:
	mov $LINE_STATUS, %edx
wait:
	in %dx, %al
	test $TRANSMITTER_HAS_ROOM, %al
	jz wait
	mov $COM1, %edx
	lodsb
	test %al, %al
	jz end
	out %al, %dx
	jmp print
end:
	mov $42, %al
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt

text:
	.asciz "hello from a tiny guest\nwith a second line\n"
