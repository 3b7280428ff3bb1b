/* Entered by a multiboot loader; prints what it finds on COM1 in the manner of kvm-unit-tests and
 * ends by the debug-exit port. What it does depends on the letter behind the program's name:
 *   N (a digit)  wakes the other processors and waits for N of them in all; status 0
 *   f, s, a      a failure (1), a skip (38, which QEMU makes 77), an abort (127)
 *   o            switches off by Bochs's port */
#include "guest.h"

#define COM1 0x3f8
#define MAGIC 0x1badb002
#define FLAGS 3
#define IN_EAX 0x2badb002
#define WANTED 0x24d /* memory, command line, modules, memory map, loader's name */
#define MEM_UPPER 8
#define CMDLINE 16
#define MODS_COUNT 20
#define MODS_ADDR 24
#define MMAP_LENGTH 44
#define LOADER_NAME 64
#define BOCHS 0x8900
#define TRAMPOLINE 0x10000
#define ARRIVED 0x800
#define ALL_BUT_SELF 0xc0000
#define INIT 0x4500
#define STARTUP 0x4600

	.code32
	.balign 4
	.long MAGIC, FLAGS, -(MAGIC + FLAGS)

	.globl _start
_start:
	mov $stack, %esp
	cmp $IN_EAX, %eax
	mov $no_magic, %esi
	jne failed
	mov (%ebx), %eax
	and $WANTED, %eax
	cmp $WANTED, %eax
	mov $no_info, %esi
	jne failed
	cmpl $127 << 10, MEM_UPPER(%ebx) /* of 128 MiB */
	mov $no_memory, %esi
	jne failed
	cmpl $3 * 24, MMAP_LENGTH(%ebx)
	jne failed
	mov $passed, %esi
	call print
	mov LOADER_NAME(%ebx), %esi
	call print
	call newline
	mov $info, %esi
	call print
	mov CMDLINE(%ebx), %esi
	call print
	call newline
	cmpl $1, MODS_COUNT(%ebx)
	jne no_module
	mov $module, %esi
	call print
	mov MODS_ADDR(%ebx), %eax
	mov (%eax), %esi
	mov 4(%eax), %ecx
	sub %esi, %ecx
next_byte:
	lodsb
	call put
	loop next_byte
	call newline
no_module:
	mov CMDLINE(%ebx), %esi
name:
	lodsb
	test %al, %al
	jz passed_all
	cmp $' ', %al
	jne name
	lodsb
	cmp $'f', %al
	mov $asked, %esi
	je failed
	cmp $'s', %al
	je skip
	cmp $'a', %al
	je abort
	cmp $'o', %al
	je switch_off
	sub $'1', %al
	jc passed_all

	movzbl %al, %ebp
	mov $trampoline, %esi
	mov $TRAMPOLINE, %edi
	mov $(trampoline_end - trampoline), %ecx
	rep movsb
	movl $LAPIC_ENABLED_VECTOR_255, LAPIC + LAPIC_SPURIOUS
	movl $(ALL_BUT_SELF | INIT), LAPIC + LAPIC_ICR_LOW
	movl $(ALL_BUT_SELF | STARTUP | (TRAMPOLINE >> 12)), LAPIC + LAPIC_ICR_LOW
arrive:
	cmp %ebp, TRAMPOLINE + ARRIVED
	jne arrive
	mov $processors, %esi
	call print
passed_all:
	mov $summary, %esi
	xor %eax, %eax
	jmp end
failed:
	push %esi
	mov $fail, %esi
	call print
	pop %esi
	call print
	mov $1, %eax
	mov $summary_failed, %esi
	jmp end
skip:
	mov $skipped, %esi
	mov $77 >> 1, %eax
	jmp end
abort:
	mov $aborted, %esi
	mov $127, %eax
	jmp end
switch_off:
	mov $word, %esi
	mov $BOCHS, %edx
letter:
	lodsb
	out %al, %dx
	jmp letter
end:
	push %eax
	call print
	pop %eax
	mov $DEBUG_EXIT, %edx
	out %eax, %dx
halt:
	hlt
	jmp halt

newline:
	mov $'\n', %al
put:
	mov $COM1, %edx
	out %al, %dx
	ret
print:
	lodsb
	test %al, %al
	jz printed
	call put
	jmp print
printed:
	ret

	.code16
trampoline:
	mov %cs, %ax
	mov %ax, %ds
	lock incl ARRIVED
halt_16:
	hlt
	jmp halt_16
trampoline_end:

passed:
	.asciz "PASS: entry: entered by "
info:
	.asciz "INFO: entry: "
module:
	.asciz "INFO: module: "
processors:
	.asciz "PASS: smp: all arrived\n"
fail:
	.asciz "FAIL: "
no_magic:
	.asciz "entry: no magic number in EAX\n"
no_info:
	.asciz "entry: information is missing\n"
no_memory:
	.asciz "entry: wrong memory sizes\n"
asked:
	.asciz "choice: asked to\n"
skipped:
	.asciz "SKIP: choice: asked to\nSUMMARY: 2 tests, 1 skipped\n"
aborted:
	.asciz "ABORT: choice: asked to\n"
summary:
	.asciz "SUMMARY: 1 tests\n"
summary_failed:
	.asciz "SUMMARY: 2 tests, 1 unexpected failures\n"
word:
	.ascii "SShutdown"

	.bss
	.space 4096
stack:
