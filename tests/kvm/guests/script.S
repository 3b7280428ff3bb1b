/* Carries out the accesses that the mailbox lists, one after another. A record has four 64-bit
 * words: operation (index into the table below), address or port, value (a read puts its result
 * there), and a word that becomes 1 when the access is done. Operation 0 ends with status 0, 15 halts. */
#include "guest.h"

	.globl _start
_start:
	mov $MAILBOX, %ebp
next:
	mov (%rbp), %rcx
	mov 8(%rbp), %rdx
	mov 16(%rbp), %rax
	jmp *table(, %rcx, 8)
advance:
	movq $1, 24(%rbp)
	add $32, %rbp
	jmp next
store:
	mov %rax, 16(%rbp)
	jmp advance

in_8:
	xor %eax, %eax
	in %dx, %al
	jmp store
in_16:
	xor %eax, %eax
	in %dx, %ax
	jmp store
in_32:
	in %dx, %eax
	jmp store
out_8:
	out %al, %dx
	jmp advance
out_16:
	out %ax, %dx
	jmp advance
out_32:
	out %eax, %dx
	jmp advance

read_8:
	xor %eax, %eax
	mov (%rdx), %al
	jmp store
read_16:
	xor %eax, %eax
	mov (%rdx), %ax
	jmp store
read_32:
	mov (%rdx), %eax
	jmp store
read_64:
	mov (%rdx), %rax
	jmp store
write_8:
	mov %al, (%rdx)
	jmp advance
write_16:
	mov %ax, (%rdx)
	jmp advance
write_32:
	mov %eax, (%rdx)
	jmp advance
write_64:
	mov %rax, (%rdx)
	jmp advance

end:
	xor %eax, %eax
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt

	.balign 8
table:
	.quad end
	.quad in_8, in_16, in_32
	.quad out_8, out_16, out_32
	.quad read_8, read_16, read_32, read_64
	.quad write_8, write_16, write_32, write_64
	.quad halt
