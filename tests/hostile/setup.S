/* What a bzImage begins with: the header of Linux's boot protocol 2.15, and the way from its 16-bit
 * entry. Memory is not asked for: without boot parameters of the loader's none is told. */
#define KERNEL 0x100000
#define CODE 0x10
#define DATA 0x18
#define LOADED_HIGH 1
#define KERNEL_64 1
#define ROOM 0x400000 /* hostile.lds has the kernel end before */

	.code16
	.text
	.globl setup_start
setup_start:
	.org 0x1f1
	.byte (setup_end - setup_start) / 512 - 1
	.word 0
	.long KERNEL_PARAGRAPHS
	.word 0, 0, 0
	.word 0xaa55
	jmp enter
	.ascii "HdrS"
	.word 0x020f
	.long 0
	.word 0, 0
	.byte 0, LOADED_HIGH
	.word 0
	.long KERNEL
	.long 0, 0, 0
	.word 0
	.byte 0, 0
	.long 0          /* the command line */
	.long 0x7fffffff
	.long KERNEL     /* alignment */
	.byte 0, 20
	.word KERNEL_64
	.long 2047       /* bytes of the command line */
	.long 0
	.quad 0
	.long 0, 0
	.quad 0
	.quad KERNEL
	.long ROOM
	.long 0, 0
enter:
	cli
	xor %esi, %esi
	mov %ds, %si
	shl $4, %esi
	lea table(%esi), %eax
	mov %eax, table_place + 2
	lgdtl table_place
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	mov $DATA, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	ljmpl $CODE, $KERNEL
	/* From here on the loader's parameters have room, should it take this page for theirs. */
	.org 0xd00
	.balign 8
table:
	.quad 0, 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
table_place:
	.word . - table - 1
	.long 0
	.balign 512
setup_end:

	.section .note.GNU-stack, "", @progbits
