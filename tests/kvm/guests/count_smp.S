/* Wakes the other processors by INIT and start-up IPI, then counts on all of them. Processor k
 * (numbered as they arrive, the first is 0) reads n from port PORT + 8 k in its round n and writes
 * it to the port four above; an answer that is not n ends all with status 1.
 * Processor k keeps n in the 32-bit word k at COUNTERS. */
#include "guest.h"

#define TRAMPOLINE 0x10000
#define COUNTERS 0x800 /* within the trampoline's 64 KiB segment, which is free memory */
#define ARRIVED 0x7fc
#define ALL_BUT_SELF 0xc0000
#define INIT 0x4500
#define STARTUP 0x4600

	.globl _start
_start:
	mov $trampoline, %esi
	mov $TRAMPOLINE, %edi
	mov $(trampoline_end - trampoline), %ecx
	rep movsb
	mov $LAPIC, %ebp
	movl $LAPIC_ENABLED_VECTOR_255, LAPIC_SPURIOUS(%rbp)
	movl $(ALL_BUT_SELF | INIT), LAPIC_ICR_LOW(%rbp)
	movl $(ALL_BUT_SELF | STARTUP | (TRAMPOLINE >> 12)), LAPIC_ICR_LOW(%rbp)
	mov $(TRAMPOLINE + COUNTERS), %edi
	mov $PORT, %edx
	xor %ebx, %ebx
round:
	inc %ebx
	in %dx, %eax
	cmp %ebx, %eax
	jne wrong
	mov %ebx, (%rdi)
	add $4, %edx
	out %eax, %dx
	sub $4, %edx
	jmp round
wrong:
	mov $1, %al
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt

	.code16
trampoline:
	mov %cs, %ax
	mov %ax, %ds
	mov $1, %eax
	lock xaddl %eax, ARRIVED
	inc %eax
	mov $PORT, %dx
	shl $3, %eax
	add %ax, %dx
	shr $1, %eax
	mov $COUNTERS, %di
	add %ax, %di
	xor %ebx, %ebx
round_16:
	inc %ebx
	in %dx, %eax
	cmp %ebx, %eax
	jne wrong_16
	mov %ebx, (%di)
	add $4, %dx
	out %eax, %dx
	sub $4, %dx
	jmp round_16
wrong_16:
	mov $1, %al
	out %al, $DEBUG_EXIT
halt_16:
	hlt
	jmp halt_16
trampoline_end:
