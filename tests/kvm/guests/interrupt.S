/* Lets IOAPIC pin 4 (edge) raise vector 0x40 here. Writes 1 to PORT when it is ready, then polls
 * the local APIC's request register with interrupts off and writes 2 when the vector is pending.
 * Then it turns them on: each delivery writes 3, and the third ends it with status 0. */
#include "guest.h"

#define PIC_1_MASK 0x21 /* the line reaches the 8259s too */
#define PIC_2_MASK 0xa1
#define PIN 4
#define VECTOR 0x40
#define REDIRECTION_LOW (0x10 + 2 * PIN)
#define REDIRECTION_HIGH (0x11 + 2 * PIN)
#define LAPIC_REQUEST (0x200 + 0x10 * (VECTOR / 32))
#define CODE_SELECTOR 0x10
#define INTERRUPT_GATE 0x8e00

	.globl _start
_start:
	mov $stack_top, %esp
	mov $handler, %eax
	mov $(idt + 16 * VECTOR), %edi
	mov %ax, (%rdi)
	movw $CODE_SELECTOR, 2(%rdi)
	movw $INTERRUPT_GATE, 4(%rdi)
	shr $16, %eax
	mov %ax, 6(%rdi)
	lidt idt_register
	mov $0xff, %al
	out %al, $PIC_1_MASK
	out %al, $PIC_2_MASK
	mov $LAPIC, %ebp
	movl $LAPIC_ENABLED_VECTOR_255, LAPIC_SPURIOUS(%rbp)
	mov $IOAPIC, %esi
	movl $REDIRECTION_HIGH, (%rsi)
	movl $0, IOAPIC_WINDOW(%rsi)
	movl $REDIRECTION_LOW, (%rsi)
	movl $VECTOR, IOAPIC_WINDOW(%rsi)
	mov $PORT, %edx
	mov $1, %al
	out %al, %dx
poll:
	pause
	testl $(1 << (VECTOR % 32)), LAPIC_REQUEST(%rbp)
	jz poll
	mov $2, %al
	out %al, %dx
	mov $3, %ebx
	sti
halt:
	hlt
	jmp halt

handler:
	mov $3, %al
	out %al, %dx
	movl $0, LAPIC_EOI(%rbp)
	dec %ebx
	jnz more
	xor %eax, %eax
	out %al, $DEBUG_EXIT
more:
	iretq

	.balign 16
idt_register:
	.word 16 * (VECTOR + 1) - 1
	.quad idt
	.balign 16
idt:
	.fill 16 * (VECTOR + 1)
	.fill 4096
stack_top:
