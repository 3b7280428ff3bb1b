/* Every read and write of a register by a guest, and every event of the console, in any state that
 * the registers, the FIFO and a snapshot's file can be in. */
#include "proofs/model.h"

#include "console/uart.c"

struct pv_console {
	int unused;
};

void pv_console_arm(struct pv_console *console, uint64_t span_ns)
{
}

int pv_console_peek(const struct pv_console *console, uint32_t offset)
{
	return Frama_C_interval(-11, 255);
}

bool pv_console_put(struct pv_console *console, uint8_t byte)
{
	return PV_ANY_BOOL();
}

bool pv_console_ready(struct pv_console *console)
{
	return PV_ANY_BOOL();
}

void pv_console_take(struct pv_console *console)
{
}

static struct pv_console console;
static struct pv_uart uart;
static struct pv_uart_state state;

static void any_state(void)
{
	PV_UNKNOWN(uart);
	PV_UNKNOWN(state);
	uart.console = &console;
	for (unsigned i = 0; i < FIFO_SIZE; i++)
		uart.fifo[i].host = PV_ANY_BOOL();
	uart.first = PV_ANY(0, FIFO_SIZE - 1);
	if (pv_each(1)) {
		uart.fcr = (uint8_t)(FCR_ENABLE | pv_each(3) << FCR_TRIGGER_SHIFT);
		uart.count = PV_ANY(0, FIFO_SIZE);
	} else {
		uart.fcr = 0;
		uart.count = PV_ANY(0, 1);
	}
	uart.thri = PV_ANY_BOOL();
	uart.timeout = PV_ANY_BOOL();
	uart.line = PV_ANY_BOOL();
	uart.unheeded = PV_ANY_BOOL();
	uart.irq_fd = Frama_C_interval(-1, 1023);
}

int main(void)
{
	any_state();
	switch (pv_each(4)) {
	case 0:
		(void)pv_uart_read(&uart, (uint16_t)PV_ANY(0, UINT16_MAX));
		break;
	case 1:
		pv_uart_write(&uart, (uint16_t)PV_ANY(0, UINT16_MAX), (uint8_t)PV_ANY(0, UINT8_MAX));
		break;
	case 2:
		notify(&uart, (enum pv_console_event)PV_ANY(PV_CONSOLE_INPUT, PV_CONSOLE_TIMER));
		break;
	case 3:
		pv_uart_save(&uart, &state);
		break;
	default:
		(void)pv_uart_restore(&uart, &state);
	}
	/*@ assert sound: uart.first < FIFO_SIZE && uart.count <= FIFO_SIZE; */
	return 0;
}
