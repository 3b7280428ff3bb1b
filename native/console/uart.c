#include "console/uart.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "console/console_internal.h"

/* Registers, by offset; DLL and DLM instead of the first two while LCR_DLAB is set. */
enum { RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR };

enum { IER_RDI = 0x01, IER_THRI = 0x02, IER_RLSI = 0x04, IER_MSI = 0x08, IER_MASK = 0x0f };

enum {
	IIR_MSI = 0x00,
	IIR_NONE = 0x01,
	IIR_THRI = 0x02,
	IIR_RDI = 0x04,
	IIR_RLSI = 0x06,
	IIR_TIMEOUT = 0x0c,
	IIR_FIFO = 0xc0,
};

enum { FCR_ENABLE = 0x01, FCR_CLEAR_RX = 0x02, FCR_TRIGGER_SHIFT = 6 };

enum { LCR_DLAB = 0x80 };

enum { MCR_RTS = 0x02, MCR_DTR = 0x01, MCR_OUT1 = 0x04, MCR_OUT2 = 0x08, MCR_LOOP = 0x10 };

enum { MCR_MASK = 0x1f };

enum {
	LSR_DR = 0x01,
	LSR_OE = 0x02,
	LSR_BI = 0x10,
	LSR_THRE = 0x20,
	LSR_TEMT = 0x40,
	LSR_FIFO_ERROR = 0x80,
	LSR_CHARACTER_ERRORS = 0x1c,
};

enum { MSR_DELTAS = 0x0f };

enum { MSR_TERI = 0x04, MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

#define FIFO_SIZE PV_UART_FIFO

/* Four characters of ten bits at 115200 baud: when a driver has left bytes in the FIFO below the
 * trigger level, it is told of them again after so long. */
#define TIMEOUT_NS UINT64_C(347222)

/* So many reads of the line status in a row poll for input. Linux's driver makes two while it opens
 * a port, and then throws away what it may have received. */
#define POLLS_FOR_INPUT 4

static const uint8_t triggers[] = {1, 4, 8, 14};

struct received {
	uint8_t byte;
	uint8_t errors; /* bits of the line status, shown when the byte is the oldest */
	bool host;      /* still in the console's ring too, until it is read */
};

struct pv_uart {
	pthread_mutex_t lock; /* for all that follows; taken inside the console's device lock */
	struct pv_console *console;
	int irq_fd;

	uint8_t ier, fcr, lcr, mcr, scr;
	uint8_t divisor[2];

	struct received fifo[FIFO_SIZE];
	uint32_t first, count;
	uint32_t host_count; /* of these, how many are the host's */
	uint8_t errors;      /* of the line status; reading it clears them */
	uint8_t deltas;      /* of the modem status; reading it clears them */

	bool thri;     /* the transmitter became empty, and the guest was not told yet */
	bool timeout;  /* bytes below the trigger level have waited long enough */
	bool line;     /* the interrupt line */
	bool unheeded; /* the guest has read nothing since the line rose last */
	uint32_t polls; /* line status reads in a row that saw an empty transmitter */
};

static bool fifo_enabled(const struct pv_uart *u)
{
	return u->fcr & FCR_ENABLE;
}

static uint32_t capacity(const struct pv_uart *u)
{
	return fifo_enabled(u) ? FIFO_SIZE : 1;
}

static uint32_t trigger(const struct pv_uart *u)
{
	return fifo_enabled(u) ? triggers[u->fcr >> FCR_TRIGGER_SHIFT] : 1;
}

/* Interrupts. */

/* The identification of the enabled cause that comes first. */
static uint8_t cause(const struct pv_uart *u)
{
	if ((u->ier & IER_RLSI) && u->errors)
		return IIR_RLSI;
	if ((u->ier & IER_RDI) && u->count >= trigger(u))
		return IIR_RDI;
	if ((u->ier & IER_RDI) && u->timeout)
		return IIR_TIMEOUT;
	if ((u->ier & IER_THRI) && u->thri)
		return IIR_THRI;
	if ((u->ier & IER_MSI) && u->deltas)
		return IIR_MSI;
	return IIR_NONE;
}

/* Drive the line. The interrupt controller sees its edges alone, so every fall that a driver can
 * count on must happen: callers that end one cause and begin another call this in between. */
static void update_line(struct pv_uart *u)
{
	const uint64_t one = 1;
	bool line = cause(u) != IIR_NONE;

	if (line && !u->line) {
		u->unheeded = true;
		if (u->irq_fd >= 0 && write(u->irq_fd, &one, sizeof(one)) < 0)
			u->unheeded = false;
	}
	u->line = line;
}

/* The receiver. */

static void show_errors_of_oldest(struct pv_uart *u)
{
	struct received *oldest = &u->fifo[u->first];

	if (u->count == 0)
		return;
	u->errors |= oldest->errors;
	oldest->errors = 0;
}

static void push(struct pv_uart *u, struct received received)
{
	if (u->count == capacity(u)) {
		u->errors |= LSR_OE;
		if (fifo_enabled(u))
			return;
		/* Without a FIFO the newer byte overwrites the older. */
		u->count = u->host_count = 0;
	}
	u->fifo[(u->first + u->count++) % FIFO_SIZE] = received;
	u->host_count += received.host;
	if (u->count == 1)
		show_errors_of_oldest(u);
}

static void clear_fifo(struct pv_uart *u)
{
	u->count = u->host_count = 0;
	u->timeout = false;
}

/* Receive what the host has sent and there is room for. */
static void receive(struct pv_uart *u)
{
	int byte;

	if (u->mcr & MCR_LOOP)
		return;
	while (u->count < capacity(u)) {
		byte = pv_console_peek(u->console, u->host_count);
		if (byte < 0)
			break;
		push(u, (struct received){.byte = (uint8_t)byte, .host = true});
	}
	/* Nothing more is on the way, so there is nothing to wait for. */
	u->timeout = u->count > 0 && u->count < trigger(u);
}

static void receive_if_enabled(struct pv_uart *u)
{
	if (u->ier & IER_RDI)
		receive(u);
}

static uint8_t read_rbr(struct pv_uart *u)
{
	struct received oldest = u->fifo[u->first];

	if (u->count == 0)
		return 0;
	u->first = (u->first + 1) % FIFO_SIZE;
	u->count--;
	if (oldest.host) {
		u->host_count--;
		pv_console_take(u->console);
	}
	show_errors_of_oldest(u);
	u->timeout = false;
	update_line(u);
	if (u->count == 0)
		receive_if_enabled(u);
	else if (u->count < trigger(u) && (u->ier & IER_RDI))
		pv_console_arm(u->console, TIMEOUT_NS);
	return oldest.byte;
}

/* The transmitter. */

static bool transmitter_empty(const struct pv_uart *u)
{
	return (u->mcr & MCR_LOOP) || pv_console_ready(u->console);
}

static void write_thr(struct pv_uart *u, uint8_t value)
{
	/* The line falls here and rises again below, an edge for every byte. A guest that has
	 * looked at no register since the last edge has that one still to serve. */
	if (!u->unheeded) {
		u->thri = false;
		update_line(u);
	}
	if (u->mcr & MCR_LOOP) {
		push(u, (struct received){.byte = value});
		pv_console_arm(u->console, TIMEOUT_NS);
	} else {
		pv_console_put(u->console, value);
	}
	u->thri = transmitter_empty(u);
}

/* The other registers. */

static uint8_t read_iir(struct pv_uart *u)
{
	uint8_t id = cause(u);

	if (id == IIR_THRI)
		u->thri = false;
	return id | (fifo_enabled(u) ? IIR_FIFO : 0);
}

static bool has_errors_in_fifo(const struct pv_uart *u)
{
	bool any = u->errors & LSR_CHARACTER_ERRORS;

	for (uint32_t i = 0; i < u->count; i++)
		any |= u->fifo[(u->first + i) % FIFO_SIZE].errors != 0;
	return fifo_enabled(u) && any;
}

static uint8_t read_lsr(struct pv_uart *u, uint32_t polls)
{
	uint8_t value = 0;

	if (polls >= POLLS_FOR_INPUT)
		receive(u);
	if (u->count)
		value |= LSR_DR;
	if (transmitter_empty(u))
		value |= LSR_THRE | LSR_TEMT;
	if (has_errors_in_fifo(u))
		value |= LSR_FIFO_ERROR;
	value |= u->errors;
	u->errors = 0;
	u->polls = value & LSR_THRE ? polls : 0;
	return value;
}

/* The modem lines: of a peer that is there, or in loopback our own outputs. */
static uint8_t modem_lines(const struct pv_uart *u)
{
	if (!(u->mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	return (uint8_t)((u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) |
	                 (u->mcr & MCR_OUT1 ? MSR_RI : 0) | (u->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static uint8_t read_msr(struct pv_uart *u)
{
	uint8_t value = modem_lines(u) | u->deltas;

	u->deltas = 0;
	return value;
}

static void write_mcr(struct pv_uart *u, uint8_t value)
{
	uint8_t before = modem_lines(u);
	uint8_t after;

	u->mcr = value & MCR_MASK;
	after = modem_lines(u);
	u->deltas |= (uint8_t)(((before ^ after) & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4);
	if (before & ~after & MSR_RI)
		u->deltas |= MSR_TERI;
	receive_if_enabled(u);
}

static void write_ier(struct pv_uart *u, uint8_t value)
{
	uint8_t enabled = value & (uint8_t)~u->ier;

	u->ier = value & IER_MASK;
	if ((enabled & IER_THRI) && transmitter_empty(u))
		u->thri = true;
	if (enabled & IER_RDI)
		receive(u);
}

static void write_fcr(struct pv_uart *u, uint8_t value)
{
	/* The other bits are taken only together with this one. */
	if (!(value & FCR_ENABLE))
		value = 0;
	if (((value ^ u->fcr) & FCR_ENABLE) || (value & FCR_CLEAR_RX))
		clear_fifo(u);
	u->fcr = value & (FCR_ENABLE | 3 << FCR_TRIGGER_SHIFT);
	update_line(u);
	receive_if_enabled(u);
}

static uint8_t read_register(struct pv_uart *u, uint16_t offset)
{
	uint32_t polls = u->polls;

	u->polls = 0;
	u->unheeded = false;
	if (offset <= IER && (u->lcr & LCR_DLAB))
		return u->divisor[offset];
	switch (offset) {
	case RBR_THR:
		return read_rbr(u);
	case IER:
		return u->ier;
	case IIR_FCR:
		return read_iir(u);
	case LCR:
		return u->lcr;
	case MCR:
		return u->mcr;
	case LSR:
		return read_lsr(u, polls + 1);
	case MSR:
		return read_msr(u);
	case SCR:
		return u->scr;
	default:
		return 0xff;
	}
}

static void write_register(struct pv_uart *u, uint16_t offset, uint8_t value)
{
	u->polls = 0;
	if (offset <= IER && (u->lcr & LCR_DLAB)) {
		u->divisor[offset] = value;
		return;
	}
	switch (offset) {
	case RBR_THR:
		write_thr(u, value);
		break;
	case IER:
		write_ier(u, value);
		break;
	case IIR_FCR:
		write_fcr(u, value);
		break;
	case LCR:
		u->lcr = value;
		break;
	case MCR:
		write_mcr(u, value);
		break;
	case SCR:
		u->scr = value;
		break;
	default: /* line and modem status are read only */
		break;
	}
}

static void notify(void *device, enum pv_console_event event)
{
	struct pv_uart *u = device;

	pthread_mutex_lock(&u->lock);
	switch (event) {
	case PV_CONSOLE_INPUT:
		receive_if_enabled(u);
		break;
	case PV_CONSOLE_ROOM:
		u->thri = true;
		break;
	case PV_CONSOLE_BREAK:
		if (u->mcr & MCR_LOOP)
			break;
		push(u, (struct received){.errors = LSR_BI});
		u->timeout = u->count < trigger(u);
		break;
	case PV_CONSOLE_TIMER:
		receive_if_enabled(u);
		u->timeout = u->count > 0 && u->count < trigger(u);
		break;
	}
	update_line(u);
	pthread_mutex_unlock(&u->lock);
}

uint8_t pv_uart_read(void *opaque, uint16_t offset)
{
	struct pv_uart *u = opaque;
	uint8_t value;

	pthread_mutex_lock(&u->lock);
	value = read_register(u, offset);
	update_line(u);
	pthread_mutex_unlock(&u->lock);
	return value;
}

void pv_uart_write(void *opaque, uint16_t offset, uint8_t value)
{
	struct pv_uart *u = opaque;

	pthread_mutex_lock(&u->lock);
	write_register(u, offset, value);
	update_line(u);
	pthread_mutex_unlock(&u->lock);
}

void pv_uart_save(struct pv_uart *u, struct pv_uart_state *state)
{
	pthread_mutex_lock(&u->lock);
	*state = (struct pv_uart_state){
		.ier = u->ier,
		.fcr = u->fcr,
		.lcr = u->lcr,
		.mcr = u->mcr,
		.scr = u->scr,
		.divisor = {u->divisor[0], u->divisor[1]},
		.errors = u->errors,
		.deltas = u->deltas,
		.thri = u->thri,
		.timeout = u->timeout,
		.line = u->line,
		.polls = u->polls,
		.count = u->count,
	};
	for (uint32_t i = 0; i < u->count; i++) {
		const struct received *received = &u->fifo[(u->first + i) % FIFO_SIZE];

		state->bytes[i] = received->byte;
		state->byte_errors[i] = received->errors;
		state->of_host[i] = received->host;
	}
	pthread_mutex_unlock(&u->lock);
}

/* Each byte of the host's is what the console has of it. */
static int restore_fifo(struct pv_uart *u, const struct pv_uart_state *state)
{
	u->first = u->count = u->host_count = 0;
	for (uint32_t i = 0; i < state->count; i++) {
		struct received *received = &u->fifo[u->count++];

		*received = (struct received){
			.byte = state->bytes[i],
			.errors = state->byte_errors[i] & LSR_CHARACTER_ERRORS,
			.host = state->of_host[i] != 0,
		};
		if (!received->host)
			continue;
		if (pv_console_peek(u->console, u->host_count++) != received->byte)
			return -EINVAL;
	}
	return 0;
}

int pv_uart_restore(struct pv_uart *u, const struct pv_uart_state *state)
{
	int result = -EINVAL;

	pthread_mutex_lock(&u->lock);
	u->ier = state->ier & IER_MASK;
	u->fcr = state->fcr & (FCR_ENABLE | 3 << FCR_TRIGGER_SHIFT);
	u->lcr = state->lcr;
	u->mcr = state->mcr & MCR_MASK;
	u->scr = state->scr;
	u->divisor[0] = state->divisor[0];
	u->divisor[1] = state->divisor[1];
	if (state->count <= capacity(u))
		result = restore_fifo(u, state);
	if (result < 0)
		clear_fifo(u);
	u->errors = state->errors & (LSR_OE | LSR_CHARACTER_ERRORS);
	u->deltas = state->deltas & MSR_DELTAS;
	u->thri = state->thri != 0;
	u->timeout = state->timeout != 0;
	u->line = u->unheeded = state->line != 0;
	u->polls = state->polls;
	pthread_mutex_unlock(&u->lock);
	return result;
}

void pv_uart_resume(struct pv_uart *u)
{
	pthread_mutex_lock(&u->lock);
	u->line = false;
	update_line(u);
	/* Whoever waits for the one or the other is told when it is so. */
	(void)transmitter_empty(u);
	if (u->count > 0)
		pv_console_arm(u->console, TIMEOUT_NS);
	pthread_mutex_unlock(&u->lock);
}

int pv_uart_new(int irq_fd, struct pv_console *console, struct pv_uart **out)
{
	struct pv_uart *u = calloc(1, sizeof(*u));

	*out = u;
	if (!u)
		return -ENOMEM;
	pthread_mutex_init(&u->lock, NULL);
	u->console = console;
	u->irq_fd = irq_fd;
	u->divisor[0] = 1;
	pv_console_set_device(console, notify, u);
	return 0;
}

void pv_uart_free(struct pv_uart *u)
{
	if (!u)
		return;
	pv_console_set_device(u->console, NULL, NULL);
	pthread_mutex_destroy(&u->lock);
	free(u);
}
