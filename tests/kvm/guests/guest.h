/* What the tiny guests and tests/kvm/support.py agree on. A guest is linked at 1 MiB; the mailbox,
 * one page of words from the test and answers to it, and the buffer behind it are plain memory
 * that is zero at the start. */
#define MAILBOX 0x200000
#define BUFFER 0x201000

#define DEBUG_EXIT 0xf4
#define PORT 0x1000     /* Python devices of the tests stand from here ... */
#define MMIO 0xd0000000 /* ... and here */

#define PLUG 0x620 /* devices that come while it runs: what is offered, and the answer */
#define PLUG_TABLE 0xd0000

#define LAPIC 0xfee00000
#define LAPIC_EOI 0xb0
#define LAPIC_SPURIOUS 0xf0
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ENABLED_VECTOR_255 0x1ff
#define IOAPIC 0xfec00000
#define IOAPIC_WINDOW 0x10
