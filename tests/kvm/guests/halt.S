/* Stands still for ever, with interrupts off. */
	.globl _start
_start:
	hlt
	jmp _start
