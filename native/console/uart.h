/* A 16550A serial port, as in a PC: eight registers, of which guests know every bit.
 *
 * Sources: the PC16550D data sheet; Linux's drivers/tty/serial/8250 for what drivers rely on.
 * What differs from the chip, because no line is there:
 * - There is no transmit time. The transmitter is "empty" while at least half of the console's
 *   ring is free, so a driver that looks at the line status or waits for the interrupt loses
 *   nothing however slow the terminal is, and one that does neither has 32 KiB.
 * - Host input is received only when the guest listens: receive interrupts are enabled, or the
 *   line status is read repeatedly with nothing to transmit. Bytes that a FIFO reset throws away
 *   unread are received again. So input typed (or piped in) before the guest opens its port is
 *   not lost.
 * - Speed, parity, stop bits and OUT2's gating of the interrupt are stored and have no effect.
 *   Modem status shows a peer that is always there. */
#ifndef PV_UART_H
#define PV_UART_H

#include <stdint.h>

#include "console/console.h"

struct pv_uart;

/* `irq_fd` is an eventfd (an irqfd of KVM) that is written when the interrupt line rises, borrowed
 * like `console` until pv_uart_free, -1 for none. One port for each console. -ENOMEM. */
int pv_uart_new(int irq_fd, struct pv_console *console, struct pv_uart **out);

/* No thread may be in pv_uart_read or pv_uart_write; the console's own may run. */
void pv_uart_free(struct pv_uart *uart);

#define PV_UART_FIFO 16

/* What a guest can tell of the port. Of the bytes in the FIFO those that came from the host are
 * the first of the console's input, too, where they wait until they are read. */
struct pv_uart_state {
	uint8_t ier, fcr, lcr, mcr, scr; /* the registers, those bits that are kept */
	uint8_t divisor[2];
	uint8_t errors;  /* bits of the line status that a read clears */
	uint8_t deltas;  /* of the modem status */
	uint8_t thri;    /* the transmitter became empty, and the guest was not told yet */
	uint8_t timeout; /* bytes in the FIFO have waited long enough */
	uint8_t line;    /* the interrupt line is high */
	uint32_t polls;  /* reads of the line status in a row */
	uint32_t count;  /* of bytes in the FIFO */
	uint8_t bytes[16];       /* PV_UART_FIFO */
	uint8_t byte_errors[16]; /* bits of the line status */
	uint8_t of_host[16];     /* 1: from the host */
};

/* Any thread, while no register is accessed. */
void pv_uart_save(struct pv_uart *uart, struct pv_uart_state *state);
/* Of a port that nobody has used, whose console has its input. -EINVAL: it cannot be. The interrupt
 * line makes no edge. */
int pv_uart_restore(struct pv_uart *uart, const struct pv_uart_state *state);
/* Let the line make an edge if it is high: KVM may have forgotten the one it saw. */
void pv_uart_resume(struct pv_uart *uart);

/* Access a register; `opaque` is a struct pv_uart, `offset` 0 to 7 (others read as 0xff). Any
 * thread may call, several at once; never waits for the host. */
uint8_t pv_uart_read(void *opaque, uint16_t offset);
void pv_uart_write(void *opaque, uint16_t offset, uint8_t value);

#endif
