/* Counts rounds, as fast as it can. Round n adds to a word of memory eight times, reads a port,
 * writes a port, writes a device register and reads one; each read must answer n, and each write
 * says n. An answer that is not n ends it with status 1: an access got lost or was made twice.
 * Mailbox: the word (8 n between rounds), then the answer and the round that did not agree. */
#include "guest.h"

	.globl _start
_start:
	mov $MAILBOX, %ebp
	mov $MMIO, %esi
	xor %ebx, %ebx
round:
	inc %ebx
	mov $8, %ecx
add:
	incq (%rbp)
	dec %ecx
	jnz add
	mov $PORT, %edx
	in %dx, %eax
	cmp %ebx, %eax
	jne wrong
	add $4, %edx
	out %eax, %dx
	mov %ebx, (%rsi)
	mov 4(%rsi), %eax
	cmp %ebx, %eax
	je round
wrong:
	mov %eax, 8(%rbp)
	mov %ebx, 16(%rbp)
	mov $1, %al
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt
