/* Fills every register that a program has, counts in the first word of the mailbox until the second
 * is not 0, and looks whether they are as they were: it ends with status 42, or with the number of
 * the check that failed. The third word is the TSC, again and again. */
#include "guest.h"

#define CR4_OSFXSR 0x200
#define LSTAR 0xc0000082
#define FS_BASE 0xc0000100
#define KERNEL_GS_BASE 0xc0000102
#define WORD(n) (0x11223300 + n)
#define SAVED BUFFER
#define KEPT 42

	.macro check number
	je 1f
	mov $\number, %al
	out %al, $DEBUG_EXIT
1:
	.endm

	.macro write_msr number, low
	mov $\number, %ecx
	mov $\low, %eax
	mov $0x7f, %edx
	wrmsr
	.endm

	.macro check_msr number, low, status
	mov $\number, %ecx
	rdmsr
	shl $32, %rdx
	or %rdx, %rax
	mov $(0x7f << 32 | \low), %rdx
	cmp %rdx, %rax
	check \status
	.endm

	.globl _start
_start:
	mov %cr4, %rax
	or $CR4_OSFXSR, %rax
	mov %rax, %cr4
	write_msr LSTAR, 0x1000
	write_msr FS_BASE, 0x2000
	write_msr KERNEL_GS_BASE, 0x3000
	mov $WORD(99), %eax
	mov %rax, %dr0
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu words + 4 * \n, %xmm\n
	.endr
	mov $WORD(2), %ebx
	mov $WORD(3), %ecx
	mov $WORD(5), %esi
	mov $WORD(6), %edi
	mov $WORD(7), %ebp
	mov $WORD(8), %esp
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	mov $WORD(100 + \n), %r\n
	.endr
	std
round:
	rdtsc
	mov %eax, MAILBOX + 16
	mov %edx, MAILBOX + 20
	incq MAILBOX
	cmpq $0, MAILBOX + 8
	je round

	cmp $WORD(2), %rbx
	check 1
	cmp $WORD(3), %rcx
	check 2
	cmp $WORD(5), %rsi
	check 3
	cmp $WORD(6), %rdi
	check 4
	cmp $WORD(7), %rbp
	check 5
	cmp $WORD(8), %rsp
	check 6
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	cmp $WORD(100 + \n), %r\n
	check \n
	.endr
	mov $SAVED + 0x100, %esp
	pushfq
	pop %rax
	and $0x400, %eax
	cmp $0x400, %eax
	check 21
	cld
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu %xmm\n, SAVED
	mov $SAVED, %esi
	mov $(words + 4 * \n), %edi
	mov $4, %ecx
	repe cmpsl
	check 20
	.endr
	check_msr LSTAR, 0x1000, 23
	check_msr FS_BASE, 0x2000, 24
	check_msr KERNEL_GS_BASE, 0x3000, 25
	mov %dr0, %rax
	cmp $WORD(99), %rax
	check 26
	mov $KEPT, %al
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt

	.balign 16
words:
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18
	.long WORD(\n)
	.endr
