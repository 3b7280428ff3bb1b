/* Writes blocks of 4 KiB to the first disk for ever, each flushed before the next is begun, and tells
 * COM1 of each: its number as eight hexadecimal digits, behind a '!' when the disk has failed it.
 * Block N is N in each of its words, and lies at N modulo 256. */
#include "guest.h"

#define COM1 0x3f8
#define LINE_STATUS (COM1 + 5)
#define TRANSMITTER_HAS_ROOM 0x20

#define QUEUE_NOTIFY (MMIO + 0x50)
#define QUEUE_SIZE 8
#define NEXT 1
#define WRITE 2
#define TYPE_OUT 1
#define TYPE_FLUSH 4
#define HEAD_WRITE 0
#define HEAD_FLUSH 3

#define BLOCK 4096
#define BLOCKS 256
#define SECTORS_SHIFT 3 /* of a block */

	.globl _start
_start:
	mov $stack, %esp
	mov $MMIO, %ebp
	mov $setup, %esi
	mov $((setup_end - setup) / 8), %ecx
set:
	lodsl
	lea (%rbp, %rax), %edx
	lodsl
	mov %eax, (%rdx)
	loop set

	xor %r8d, %r8d /* the block's number */
	xor %r9d, %r9d /* requests so far */
next_block:
	inc %r8d
	mov %r8, %rax
	mov $data, %edi
	mov $(BLOCK / 8), %ecx
	rep stosq
	mov %r8d, %eax
	and $(BLOCKS - 1), %eax
	shl $SECTORS_SHIFT, %eax
	mov %eax, sector
	xor %r10d, %r10d /* what the disk has said of this one */
	mov $HEAD_WRITE, %eax
	call request
	mov $HEAD_FLUSH, %eax
	call request
	test %r10d, %r10d
	jz tell
	mov $'!', %al
	call put
tell:
	mov %r8d, %ebx
	mov $8, %ecx
digit:
	rol $4, %ebx
	mov %ebx, %eax
	and $15, %eax
	mov digits(%rax), %al
	call put
	loop digit
	mov $'\n', %al
	call put
	jmp next_block

/* Make the chain with the head in AX available, and wait for its answer. */
request:
	movb $0xff, status
	mov %r9d, %edx
	and $(QUEUE_SIZE - 1), %edx
	mov %ax, available + 4(, %rdx, 2)
	inc %r9d
	mov %r9w, available + 2
	mov $QUEUE_NOTIFY, %edx
	movl $0, (%rdx)
answer:
	pause
	cmp used + 2, %r9w
	jne answer
	movzbl status, %eax
	or %eax, %r10d
	ret

put:
	mov %al, %ah
	mov $LINE_STATUS, %edx
room:
	in %dx, %al
	test $TRANSMITTER_HAS_ROOM, %al
	jz room
	mov %ah, %al
	mov $COM1, %edx
	out %al, %dx
	ret

digits:
	.ascii "0123456789abcdef"

/* Registers and what is written to them (virtio 1.2, 3.1.1 and 4.2.3): VERSION_1 and FLUSH. */
	.balign 8
setup:
	.long 0x70, 0, 0x70, 1, 0x70, 3
	.long 0x24, 0, 0x20, 1 << 9, 0x24, 1, 0x20, 1, 0x70, 11
	.long 0x30, 0, 0x38, QUEUE_SIZE
	.long 0x80, descriptors, 0x84, 0, 0x90, available, 0x94, 0, 0xa0, used, 0xa4, 0
	.long 0x44, 1, 0x70, 15
setup_end:

	.balign 4096
descriptors:
	.quad header
	.long 16
	.word NEXT, 1
	.quad data
	.long BLOCK
	.word NEXT, 2
	.quad status
	.long 1
	.word WRITE, 0
	.quad flush
	.long 16
	.word NEXT, 4
	.quad status
	.long 1
	.word WRITE, 0
	.balign 4096
available:
	.skip 4096
used:
	.skip 4096
data:
	.skip BLOCK
header:
	.long TYPE_OUT, 0
sector:
	.quad 0
flush:
	.long TYPE_FLUSH, 0
	.quad 0
status:
	.byte 0
	.balign 16
	.skip 256
stack:
