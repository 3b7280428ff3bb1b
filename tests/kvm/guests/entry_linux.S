/* Stores the registers of a 64-bit entry into the mailbox (order: test_entry.py), copies the page
 * that RSI names to the buffer, and ends with status 0. */
#include "guest.h"

	.globl _start
_start:
	mov %rax, MAILBOX
	mov %rbx, MAILBOX + 8
	mov %rcx, MAILBOX + 16
	mov %rdx, MAILBOX + 24
	mov %rsi, MAILBOX + 32
	mov %rdi, MAILBOX + 40
	mov %rbp, MAILBOX + 48
	mov %rsp, MAILBOX + 56
	pushf
	pop MAILBOX + 64
	mov %cr0, %rax
	mov %rax, MAILBOX + 72
	mov %cr3, %rax
	mov %rax, MAILBOX + 80
	mov %cr4, %rax
	mov %rax, MAILBOX + 88
	mov %cs, MAILBOX + 96
	mov %ds, MAILBOX + 98
	mov %ss, MAILBOX + 100
	mov $BUFFER, %edi
	mov $512, %ecx
	cld
	rep movsq
	xor %eax, %eax
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt
