/* Writes the letter x to COM1 for ever, without asking whether there is room. */
#define COM1 0x3f8

	.globl _start
_start:
	mov $COM1, %edx
	mov $'x', %al
more:
	out %al, %dx
	jmp more
