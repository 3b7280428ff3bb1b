/* Maps the 2 MiB page that holds the address in the mailbox (above 4 GiB) to itself, copies the
 * word found there into the mailbox's second word, writes the third word over it, and ends with
 * status 0. CR3's own tables grow by one page, the buffer. */
#include "guest.h"

#define PRESENT_WRITABLE 0x3
#define HUGE 0x80

	.globl _start
_start:
	mov MAILBOX, %rbp
	mov %cr3, %rsi
	mov (%rsi), %rsi
	and $~0xfff, %rsi
	mov %rbp, %rax
	shr $30, %rax
	movq $(BUFFER | PRESENT_WRITABLE), (%rsi, %rax, 8)
	mov %rbp, %rax
	shr $21, %rax
	mov %rax, %rbx
	and $511, %eax
	shl $21, %rbx
	or $(PRESENT_WRITABLE | HUGE), %rbx
	mov %rbx, BUFFER(, %rax, 8)
	mov %cr3, %rax
	mov %rax, %cr3
	mov (%rbp), %rax
	mov %rax, MAILBOX + 8
	mov MAILBOX + 16, %rax
	mov %rax, (%rbp)
	xor %eax, %eax
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt
