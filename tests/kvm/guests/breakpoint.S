/* Takes int3 with a handler for it; the handler ends with status 77, and where the exception is
 * lost the code behind it ends with status 78. */
#include "guest.h"

#define BREAKPOINT 3
#define CODE_SELECTOR 0x10
#define INTERRUPT_GATE 0x8e00

	.globl _start
_start:
	mov $handler, %eax
	mov $(idt + 16 * BREAKPOINT), %edi
	mov %ax, (%rdi)
	movw $CODE_SELECTOR, 2(%rdi)
	movw $INTERRUPT_GATE, 4(%rdi)
	shr $16, %eax
	mov %ax, 6(%rdi)
	lidt idt_register
	int3
	mov $78, %al
	out %al, $DEBUG_EXIT
handler:
	mov $77, %al
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt

	.balign 16
idt_register:
	.word 16 * (BREAKPOINT + 1) - 1
	.quad idt
	.balign 16
idt:
	.fill 16 * (BREAKPOINT + 1)
