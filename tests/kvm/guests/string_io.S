/* One string instruction with a repeat prefix. Mailbox: which (index into the table below), port,
 * count, address of the first element, and 1 to go downwards. Ends with status 0; the count and
 * the address that the instruction left are behind the five words. */
#include "guest.h"

	.globl _start
_start:
	mov $MAILBOX, %ebp
	mov (%rbp), %rax
	mov 8(%rbp), %rdx
	mov 16(%rbp), %rcx
	mov 24(%rbp), %rsi
	mov %rsi, %rdi
	testb $1, 32(%rbp)
	jz upwards
	std
upwards:
	jmp *table(, %rax, 8)
out_8:
	rep outsb
	jmp end
out_16:
	rep outsw
	jmp end
out_32:
	rep outsl
	jmp end
in_8:
	rep insb
	jmp end
in_16:
	rep insw
	jmp end
in_32:
	rep insl
end:
	mov %rcx, 40(%rbp)
	mov %rsi, 48(%rbp)
	mov %rdi, 56(%rbp)
	xor %eax, %eax
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt

	.balign 8
table:
	.quad out_8, out_16, out_32, in_8, in_16, in_32
