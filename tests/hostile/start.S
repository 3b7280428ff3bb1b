/* Entered by the PVH protocol: 32 bits, flat segments, no paging; EBX has the start information.
 * No interrupt is ever taken. */
#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define STACK_BYTES 16384

	.text
	.globl _start
_start:
	cli
	cld
	mov $stack + STACK_BYTES, %esp
	xor %ebp, %ebp
	push $0
	push $0
	push $0
	push %ebx
	call hostile_main
stop:
	hlt
	jmp stop

	.bss
	.balign 16
stack:
	.skip STACK_BYTES

	.section .note.Xen, "a", @note
	.balign 4
	.long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long _start, 0

	.section .note.GNU-stack, "", @progbits
