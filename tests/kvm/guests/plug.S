/* Takes the devices that it is offered, as ACPI's method does, for ever. In the mailbox: how many it
 * has taken, what it adds to each answer (anything but 0 is rubbish), and how the last table began. */
#include "guest.h"

	.globl _start
_start:
	mov $PLUG, %edx
	in %dx, %eax
	test %eax, %eax
	jz _start
	mov PLUG_TABLE, %rbx
	mov %rbx, MAILBOX + 16
	add MAILBOX + 8, %eax
	add $4, %edx
	out %eax, %dx
	cmpq $0, MAILBOX + 8
	jne _start
	incq MAILBOX
	jmp _start
