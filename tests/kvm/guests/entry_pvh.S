/* Has a PVH note, so it starts in 32-bit protected mode without paging. Stores the registers into
 * the mailbox (order: test_entry.py), copies the page that EBX names to the buffer, and ends with
 * status 0. The ELF entry point is a trap: it ends with status 99. */
#include "guest.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18

	.globl _start
_start:
	mov $99, %al
	out %al, $DEBUG_EXIT

	.code32
pvh_entry:
	mov %eax, MAILBOX
	mov %ebx, MAILBOX + 4
	mov %cr0, %eax
	mov %eax, MAILBOX + 8
	mov %cr4, %eax
	mov %eax, MAILBOX + 12
	mov %cs, %eax
	mov %ax, MAILBOX + 16
	mov %ds, %eax
	mov %ax, MAILBOX + 18
	mov %ss, %eax
	mov %ax, MAILBOX + 20
	mov %ebx, %esi
	mov $BUFFER, %edi
	mov $1024, %ecx
	cld
	rep movsl
	xor %eax, %eax
	out %al, $DEBUG_EXIT
halt:
	hlt
	jmp halt

	.section .note.Xen, "a", @note
	.balign 4
	.long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.quad pvh_entry
