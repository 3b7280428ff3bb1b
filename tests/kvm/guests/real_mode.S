/* Goes from a multiboot loader to real mode, as Xen does, and leaves at 0x600 what it finds:
 *   0  where base memory ends: the EBDA's segment, and the KiB before it (16 bits each)
 *   4  the flags after a BIOS call with the carry flag clear, and AX and BX after it
 *  10  the flags after INT 8, a timer's interrupt, with the carry flag clear
 * then it ends with status 0. */
#include "guest.h"

#define MAGIC 0x1badb002
#define FLAGS 3
#define LOW 0x10000
#define MEMORY_MAP 0xe820
#define ANSWERS 0x600

	.code32
	.balign 4
	.long MAGIC, FLAGS, -(MAGIC + FLAGS)

	.globl _start
_start:
	mov $low, %esi
	mov $LOW, %edi
	mov $(low_end - low), %ecx
	rep movsb
	lgdt gdt_register
	ljmp $8, $0

	.code16
low:
	mov $16, %ax
	mov %ax, %ds
	mov %ax, %ss
	mov %cr0, %eax
	and $~1, %eax
	mov %eax, %cr0
	ljmp $(LOW >> 4), $(real - low)
real:
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %ss
	mov $0x4000, %sp
	lidt %cs:(idt_register - low)
	mov 0x40e, %ax
	mov %ax, ANSWERS
	mov 0x413, %ax
	mov %ax, ANSWERS + 2
	mov $MEMORY_MAP, %ax
	mov $0x1234, %bx
	clc
	int $0x15
	mov %ax, ANSWERS + 6
	mov %bx, ANSWERS + 8
	pushf
	pop %ax
	mov %ax, ANSWERS + 4
	clc
	int $8
	pushf
	pop %ax
	mov %ax, ANSWERS + 10
	xor %ax, %ax
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt
idt_register:
	.word 0x3ff
	.long 0
low_end:

	.balign 8
gdt:
	.quad 0
	.quad 0x00009b010000ffff /* 16-bit code at LOW */
	.quad 0x000093000000ffff
gdt_register:
	.word gdt_register - gdt - 1
	.long gdt
