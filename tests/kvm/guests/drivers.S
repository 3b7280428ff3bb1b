/* Drives each virtio device as far as DRIVER_OK, with queues of 16 entries in which nothing is, eight
 * of them at most; then it counts in the mailbox for ever. */
#include "guest.h"

#define MAGIC 0x74726976
#define DEVICES 32
#define STEP 0x1000 /* from one device's registers to the next one's, and from queue to queue */
#define RINGS 0x400000

	.globl _start
_start:
	mov $MMIO, %ebx
	mov $RINGS, %edi
device:
	mov 0x00(%rbx), %eax /* MagicValue */
	cmp $MAGIC, %eax
	jne next
	mov 0x08(%rbx), %eax /* DeviceID */
	test %eax, %eax
	jz next
	movl $1, 0x70(%rbx) /* Status: ACKNOWLEDGE, */
	movl $3, 0x70(%rbx) /* and DRIVER */
	movl $1, 0x24(%rbx) /* DriverFeatures: VERSION_1 */
	movl $1, 0x20(%rbx)
	movl $11, 0x70(%rbx) /* FEATURES_OK */
	xor %ecx, %ecx
queue:
	mov %ecx, 0x30(%rbx) /* QueueSel */
	mov 0x34(%rbx), %eax /* QueueNumMax */
	test %eax, %eax
	jz runs
	movl $16, 0x38(%rbx) /* QueueNum */
	mov %edi, 0x80(%rbx) /* QueueDesc */
	movl $0, 0x84(%rbx)
	lea 0x400(%rdi), %eax
	mov %eax, 0x90(%rbx) /* QueueDriver */
	movl $0, 0x94(%rbx)
	lea 0x800(%rdi), %eax
	mov %eax, 0xa0(%rbx) /* QueueDevice */
	movl $0, 0xa4(%rbx)
	movl $1, 0x44(%rbx) /* QueueReady */
	add $STEP, %edi
	inc %ecx
	cmp $8, %ecx
	jb queue
runs:
	movl $15, 0x70(%rbx) /* DRIVER_OK */
next:
	add $STEP, %ebx
	cmp $MMIO + DEVICES * STEP, %ebx
	jb device
count:
	incq MAILBOX
	jmp count
