/* Reads the two halves of a virtio device's 8-byte configuration between two reads of its
 * generation, until the mailbox's third word is not 0. Counts the rounds in the first word, and in
 * the second those in which the halves differ though the generation does not. */
#include "guest.h"

#define GENERATION 0xfc
#define CONFIG 0x100

	.globl _start
_start:
	mov $MMIO, %ebx
	mov $MAILBOX, %ebp
round:
	mov GENERATION(%rbx), %eax
	mov CONFIG(%rbx), %ecx
	mov CONFIG + 4(%rbx), %edx
	mov GENERATION(%rbx), %esi
	incq (%rbp)
	cmp %eax, %esi
	jne next
	cmp %ecx, %edx
	je next
	incq 8(%rbp)
next:
	cmpq $0, 16(%rbp)
	je round
	xor %eax, %eax
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt
