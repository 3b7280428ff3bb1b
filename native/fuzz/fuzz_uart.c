/* A fuzz target: the input is a guest that reads and writes the registers of a serial port as it
 * likes, and a host that types, sends breaks, and takes output or does not. Every fault that a
 * sanitizer can see, a byte of the host's that is lost, made up or out of order, and a state that
 * cannot be restored ends the run.
 *
 *     make fuzz TARGET=uart
 *
 * The first byte chooses what output waits; then come instructions, a byte and what it takes. */
#include "console/state_internal.h"
#include "console/uart.h"
#include "fuzz/input.h"

enum { RBR_THR, LCR = 3, REGISTERS = 8, DLAB = 0x80 };

struct bench {
	struct pv_console *console;
	struct pv_uart *uart;
	uint32_t typed; /* bytes, whose values are their numbers */
	uint32_t read;  /* of these, by the guest */
};

static struct bench *bench_new(struct input *input)
{
	static const uint8_t OUTPUT[PV_CONSOLE_HALF];
	struct bench *bench = calloc(1, sizeof(*bench));

	REQUIRE(bench && pv_console_new(&bench->console) == 0);
	/* Almost as much as the transmitter is empty with. */
	if (take(input, 1) == UINT8_MAX)
		REQUIRE(pv_console_restore(bench->console, OUTPUT, PV_CONSOLE_HALF - 8, NULL, 0) == 0);
	REQUIRE(pv_uart_new(-1, bench->console, &bench->uart) == 0);
	return bench;
}

static void tell(struct bench *bench, enum pv_console_event event)
{
	bench->console->notify(bench->console->device, event);
}

/* The host has the guest's byte, or none, after an access that read `value`. */
static void check_input(struct bench *bench, bool is_read, uint8_t value)
{
	uint32_t gone = bench->typed - pv_ring_used(bench->console->input);

	REQUIRE(gone == bench->read || (is_read && gone == bench->read + 1));
	if (gone != bench->read)
		REQUIRE(value == (uint8_t)bench->read);
	bench->read = gone;
}

static void guest_reads(struct bench *bench, uint16_t offset)
{
	bool is_data = offset == RBR_THR && (pv_uart_read(bench->uart, LCR) & DLAB) == 0;

	check_input(bench, is_data, pv_uart_read(bench->uart, offset));
}

static void host_types(struct bench *bench, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (pv_ring_put(bench->console->input, (uint8_t)bench->typed) == 0)
			bench->typed++;
	tell(bench, PV_CONSOLE_INPUT);
}

static void host_takes(struct bench *bench, uint32_t count)
{
	struct pv_console *c = bench->console;
	uint32_t used = pv_ring_used(c->output);

	pv_ring_drop(c->output, count < used ? count : used);
	if (atomic_load(&c->want_room) && pv_console_half_free(c) &&
	    atomic_exchange(&c->want_room, false))
		tell(bench, PV_CONSOLE_ROOM);
}

static void pass_time(struct bench *bench)
{
	if (atomic_exchange(&bench->console->deadline, 0))
		tell(bench, PV_CONSOLE_TIMER);
}

static void flood(struct bench *bench, unsigned count)
{
	if (pv_uart_read(bench->uart, LCR) & DLAB)
		return;
	for (unsigned i = 0; i < count; i++)
		pv_uart_write(bench->uart, RBR_THR, (uint8_t)i);
}

/* Let another port go on in its place, from what is saved of it. */
static void move(struct bench *bench)
{
	static uint8_t output[PV_CONSOLE_RING], input[PV_CONSOLE_RING];
	uint32_t out = pv_console_save_output(bench->console, output);
	uint32_t in = pv_console_save_input(bench->console, input);
	struct pv_uart_state state, again;

	memset(&state, 0, sizeof(state));
	memset(&again, 0, sizeof(again));
	pv_uart_save(bench->uart, &state);
	pv_uart_free(bench->uart);
	pv_console_free(bench->console);
	REQUIRE(pv_console_new(&bench->console) == 0);
	REQUIRE(pv_console_restore(bench->console, output, out, input, in) == 0);
	REQUIRE(pv_uart_new(-1, bench->console, &bench->uart) == 0);
	REQUIRE(pv_uart_restore(bench->uart, &state) == 0);
	pv_uart_save(bench->uart, &again);
	REQUIRE(memcmp(&state, &again, sizeof(state)) == 0);
	pv_uart_resume(bench->uart);
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);
	uint16_t offset = code / 16 % REGISTERS;

	switch (code % 16) {
	case 0:
	case 1:
	case 2:
	case 3:
	case 4:
		pv_uart_write(bench->uart, offset, (uint8_t)take(input, 1));
		break;
	case 5:
	case 6:
	case 7:
	case 8:
		guest_reads(bench, offset);
		break;
	case 9:
	case 10:
		host_types(bench, code / 16 + 1u);
		break;
	case 11:
		tell(bench, PV_CONSOLE_BREAK);
		break;
	case 12:
		pass_time(bench);
		break;
	case 13:
		host_takes(bench, (uint32_t)take(input, 2));
		break;
	case 14:
		flood(bench, (unsigned)take(input, 1));
		break;
	default:
		if (code / 16 == 0)
			move(bench);
	}
	check_input(bench, false, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0)
		instruct(bench, &input);
	pv_uart_free(bench->uart);
	pv_console_free(bench->console);
	free(bench);
	return 0;
}
