/* Loads an IDT without entries and takes an exception: neither it nor the double fault that
 * follows can be delivered. Some registers hold values that are easily found in a dump. */
#include "guest.h"

	.globl _start
_start:
	mov $0x1122334455667788, %rax
	mov $0xfeedface, %r15d
	lidt empty
fault:
	ud2
	.globl fault

	.balign 8
empty:
	.word 0
	.quad 0
