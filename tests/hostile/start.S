/* The ways in: by PVH (the note; EBX has the start information), by multiboot (the ELF file's entry;
 * EBX), and as a bzImage, by 32 bits at the kernel's first byte and by 64 bits 0x200 behind it (ESI
 * and RSI have the boot parameters). All lead to 32 bits, flat segments and no paging. No interrupt
 * is ever taken. */
#include "boot.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_WANTS_MEMORY 2
#define STACK_BYTES 16384
#define CODE 0x10
#define DATA 0x18
#define CR0_PG 0x80000000
#define EFER 0xc0000080
#define EFER_LME 0x100

	.section .head, "ax"
	.code32
	.globl linux_start
linux_start:
	mov %esi, %ebx
	/* A bzImage has no bss that its loader knows of. */
	mov $bss_start, %edi
	mov $bss_end, %ecx
	sub %edi, %ecx
	xor %eax, %eax
	cld
	rep stosb
	mov $BOOT_LINUX, %eax
	jmp begin

	.globl multiboot_start
multiboot_start:
	mov $BOOT_MULTIBOOT, %eax
	jmp begin

pvh_start:
	mov $BOOT_PVH, %eax
begin:
	cli
	cld
	mov $stack + STACK_BYTES, %esp
	xor %ebp, %ebp
	push $0
	push $0
	push %ebx
	push %eax
	lgdt table_place
	ljmp $CODE, $1f
1:
	mov $DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs
	call hostile_main
stop:
	hlt
	jmp stop

	.org linux_start + 0x200
	.code64
	cli
	mov $stack + STACK_BYTES, %esp
	mov $table_place, %eax
	lgdt (%rax)
	push $CODE
	mov $leave_64, %eax
	push %rax
	lretq
	.code32
leave_64:
	mov $DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %cr0, %eax
	and $~CR0_PG, %eax
	mov %eax, %cr0
	mov $EFER, %ecx
	rdmsr
	and $~EFER_LME, %eax
	wrmsr
	jmp linux_start

	.balign 8
table:
	.quad 0, 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
table_place:
	.word . - table - 1
	.long table, 0

	.bss
	.balign 16
stack:
	.skip STACK_BYTES

	.section .multiboot, "a"
	.balign 4
	.long MULTIBOOT_MAGIC, MULTIBOOT_WANTS_MEMORY, -(MULTIBOOT_MAGIC + MULTIBOOT_WANTS_MEMORY)

	.section .note.Xen, "a", @note
	.balign 4
	.long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long pvh_start, 0

	.section .note.GNU-stack, "", @progbits
