/* Uses each part of pc-testdev, and writes what it found to the mailbox:
 *   0  the register after a long to 0xe0, bytes to 0xe9 and a word to 0xe2, read at 0xe8
 *   1  a byte of it read at 0xe1, and a word read at 0xea
 *   2  a long of slow memory after a quad, and a byte in it, were written; unaligned
 *   3  what the page to be flushed holds after the flush
 *   4  the lines pending in the IOAPIC's pin 14 (remote IRR) while its level is high
 *   5  how often the local APIC had the vector: by the first edge, and by no second one
 * then it ends with status 0. Runs with interrupts off: vectors are seen in the request register. */
#include "guest.h"

#define REGISTER 0xe0
#define FLUSH 0xe4
#define REGISTER_BYTES 0xe8
#define LINES 0x2000
#define SLOW 0xff000000
#define PIC_1_MASK 0x21
#define PIC_2_MASK 0xa1
#define PIN 14
#define VECTOR 0x76
#define LEVEL (1 << 15)
#define REDIRECTION_LOW (0x10 + 2 * PIN)
#define REDIRECTION_HIGH (0x11 + 2 * PIN)
#define LAPIC_REQUEST (0x200 + 0x10 * (VECTOR / 32))

	.globl _start
_start:
	mov $0xff, %al
	out %al, $PIC_1_MASK
	out %al, $PIC_2_MASK
	mov $MAILBOX, %edi

	mov $0x44332211, %eax
	out %eax, $REGISTER
	mov $0xaa, %al
	out %al, $(REGISTER_BYTES + 1)
	mov $0xccbb, %ax
	out %ax, $(REGISTER + 2)
	in $REGISTER_BYTES, %eax
	mov %rax, (%rdi)

	xor %eax, %eax
	in $(REGISTER + 1), %al
	mov %eax, 8(%rdi)
	in $(REGISTER_BYTES + 2), %ax
	mov %ax, 12(%rdi)

	mov $SLOW, %esi
	mov $0x8877665544332211, %rax
	mov %rax, 0xfff8(%rsi)
	movb $0xee, 0xfffa(%rsi)
	mov 0xfff9(%rsi), %eax
	mov %rax, 16(%rdi)

	mov $0x5555, %eax
	mov %rax, BUFFER
	mov $(BUFFER + 0x123), %eax
	out %eax, $FLUSH
	mov $0xf0000000, %eax /* no memory */
	out %eax, $FLUSH
	mov BUFFER, %rax
	mov %rax, 24(%rdi)

	mov $LAPIC, %ebp
	movl $LAPIC_ENABLED_VECTOR_255, LAPIC_SPURIOUS(%rbp)
	mov $IOAPIC, %esi
	movl $REDIRECTION_HIGH, (%rsi)
	movl $0, IOAPIC_WINDOW(%rsi)
	movl $REDIRECTION_LOW, (%rsi)
	movl $(VECTOR | LEVEL), IOAPIC_WINDOW(%rsi)
	mov LAPIC_REQUEST(%rbp), %eax
	mov %eax, 40(%rdi)
	mov $(LINES + PIN), %edx
	mov $0x80, %al
	out %al, %dx
pending:
	pause
	mov LAPIC_REQUEST(%rbp), %eax
	test $(1 << (VECTOR % 32)), %eax
	jz pending
	mov %eax, 44(%rdi)
	mov IOAPIC_WINDOW(%rsi), %eax
	mov %rax, 32(%rdi)
	xor %eax, %eax
	out %al, %dx
	xor %eax, %eax
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt
