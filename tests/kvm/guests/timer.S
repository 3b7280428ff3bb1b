/* Arms the local APIC's timer and counts in the first word of the mailbox until the second is not 0;
 * then it waits, with interrupts off, until the timer's vector is pending, and ends with status 42. */
#include "guest.h"

#define LVT_TIMER 0x320
#define INITIAL_COUNT 0x380
#define DIVIDE 0x3e0
#define BY_1 0xb
#define VECTOR 0x50
#define REQUEST (0x200 + 0x10 * (VECTOR / 32))
#define ABOUT_2_S 2000000000

	.globl _start
_start:
	mov $LAPIC, %ebp
	movl $LAPIC_ENABLED_VECTOR_255, LAPIC_SPURIOUS(%rbp)
	movl $BY_1, DIVIDE(%rbp)
	movl $VECTOR, LVT_TIMER(%rbp)
	movl $ABOUT_2_S, INITIAL_COUNT(%rbp)
round:
	pause
	incq MAILBOX
	cmpq $0, MAILBOX + 8
	je round
wait:
	pause
	testl $(1 << (VECTOR % 32)), REQUEST(%rbp)
	jz wait
	mov $42, %al
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt
