/* The 16550A register model, driven as drivers drive it. */
#include "console/uart.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>

#include "tests/check.h"

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = IIR };

/* A serial port with both ends of its pipes in our hands. */
struct port {
	struct pv_console *console;
	struct pv_uart *uart;
	int irq;
	int to_guest;
	int from_guest;
};

static struct port port_open(uint32_t flags)
{
	struct port port;
	int in[2], out[2];
	struct pv_console_config config = {.listen_fd = -1, .quit_fd = -1, .flags = flags};

	CHECK(pipe(in) == 0 && pipe(out) == 0);
	port.irq = eventfd(0, EFD_NONBLOCK);
	CHECK(port.irq >= 0);
	CHECK_EQ(pv_console_new(&port.console), 0);
	CHECK_EQ(pv_uart_new(port.irq, port.console, &port.uart), 0);
	config.in_fd = in[0];
	config.out_fd = out[1];
	CHECK_EQ(pv_console_start(port.console, &config), 0);
	close(in[0]);
	close(out[1]);
	port.to_guest = in[1];
	port.from_guest = out[0];
	return port;
}

static void port_close(struct port *port)
{
	pv_uart_free(port->uart);
	pv_console_free(port->console);
	close(port->irq);
	close(port->to_guest);
	close(port->from_guest);
}

static uint8_t in(struct port *port, uint16_t offset)
{
	return pv_uart_read(port->uart, offset);
}

static void out(struct port *port, uint16_t offset, uint8_t value)
{
	pv_uart_write(port->uart, offset, value);
}

/* How often the line has risen since the last call. */
static uint64_t edges(struct port *port)
{
	uint64_t count = 0;

	return read(port->irq, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static void wait_edge(struct port *port)
{
	CHECK(readable(port->irq, 10000));
	CHECK(edges(port) > 0);
}

/* Give input and wait until the console holds it (that is: has read it from the pipe). */
static void send(struct port *port, const char *text)
{
	struct pv_console_stats stats;
	uint64_t before;

	pv_console_stats(port->console, &stats);
	before = stats.bytes_in;
	write_all(port->to_guest, text, strlen(text));
	WAIT_FOR((pv_console_stats(port->console, &stats), stats.bytes_in) ==
	         before + strlen(text));
}

static void test_plain_registers(void)
{
	struct port port = port_open(0);

	out(&port, SCR, 0x5a);
	CHECK_EQ(in(&port, SCR), 0x5a);
	out(&port, LCR, 0x83);
	out(&port, DATA, 0x34);
	out(&port, IER, 0x12);
	CHECK_EQ(in(&port, DATA), 0x34);
	CHECK_EQ(in(&port, IER), 0x12);
	CHECK_EQ(in(&port, LCR), 0x83);
	out(&port, LCR, 0x03);
	CHECK_EQ(in(&port, IER), 0);
	out(&port, IER, 0xff);
	CHECK_EQ(in(&port, IER), 0x0f);
	out(&port, IER, 0);
	out(&port, MCR, 0xeb);
	CHECK_EQ(in(&port, MCR), 0x0b);
	out(&port, LSR, 0xff);
	out(&port, MSR, 0xff);
	CHECK_EQ(in(&port, LSR), 0x60);
	CHECK_EQ(in(&port, MSR), 0xb0);
	CHECK_EQ(in(&port, 8), 0xff);
	CHECK(!readable(port.from_guest, 20));
	port_close(&port);
}

/* The steps by which Linux's 8250 driver tells a 16550A from its relatives. */
static void test_identified_as_16550a(void)
{
	struct port port = port_open(0);
	uint8_t mcr;

	CHECK_EQ(in(&port, IIR), 0x01);
	out(&port, FCR, 0x01);
	CHECK_EQ(in(&port, IIR), 0xc1);
	out(&port, LCR, 0x80);
	CHECK(in(&port, IIR) != 0); /* no enhanced feature register */
	out(&port, LCR, 0xbf);
	CHECK(in(&port, IIR) != 0);
	out(&port, LCR, 0);
	mcr = in(&port, MCR);
	out(&port, MCR, mcr ^ 0x10);
	out(&port, LCR, 0xe0);
	CHECK_EQ(in(&port, IIR) & 0x10, 0); /* not National's EXCR1 */
	out(&port, LCR, 0);
	out(&port, MCR, mcr);
	out(&port, FCR, 0x21);
	CHECK_EQ(in(&port, IIR) >> 5, 6); /* no 64 byte FIFO */
	out(&port, IER, 0x40);
	CHECK_EQ(in(&port, IER), 0);
	out(&port, FCR, 0xc0); /* nothing is taken without the enable bit */
	CHECK_EQ(in(&port, IIR), 0x01);
	port_close(&port);
}

static void test_loopback(void)
{
	struct port port = port_open(0);
	int count = 0;

	out(&port, MCR, 0x1a);
	CHECK_EQ(in(&port, MSR) & 0xf0, 0x90); /* Linux's probe: RTS and OUT2 come back */
	out(&port, MCR, 0x15);
	CHECK_EQ(in(&port, MSR) & 0xf0, 0x60);
	out(&port, FCR, 0x07);
	for (int i = 0; i < 256; i++)
		out(&port, DATA, (uint8_t)i);
	while (in(&port, LSR) & 0x01)
		CHECK_EQ(in(&port, DATA), count++);
	CHECK_EQ(count, 16);
	out(&port, FCR, 0);
	out(&port, DATA, 'a');
	out(&port, DATA, 'b');
	CHECK_EQ(in(&port, LSR), 0x63); /* overrun: the newer byte is there */
	CHECK_EQ(in(&port, DATA), 'b');
	CHECK_EQ(in(&port, LSR), 0x60);
	CHECK(!readable(port.from_guest, 20));
	port_close(&port);
}

static void test_host_input_waits_out_loopback(void)
{
	struct port port = port_open(0);

	out(&port, MCR, 0x10);
	out(&port, IER, 0x01);
	send(&port, "x");
	CHECK_EQ(in(&port, LSR) & 1, 0);
	out(&port, MCR, 0x00);
	CHECK_EQ(in(&port, LSR) & 1, 1);
	CHECK_EQ(in(&port, DATA), 'x');
	port_close(&port);
}

static void test_modem_status_interrupt(void)
{
	struct port port = port_open(0);

	out(&port, MCR, 0x1f);
	in(&port, MSR);
	out(&port, IER, 0x08);
	CHECK_EQ(in(&port, IIR), 0x01);
	CHECK_EQ(edges(&port), 0);
	out(&port, MCR, 0x1b); /* OUT1 falls: the ring indicator's trailing edge */
	CHECK_EQ(edges(&port), 1);
	CHECK_EQ(in(&port, IIR), 0x00);
	CHECK_EQ(in(&port, MSR), 0xb4);
	CHECK_EQ(in(&port, IIR), 0x01);
	out(&port, MCR, 0x1f); /* its leading edge says nothing */
	CHECK_EQ(in(&port, MSR), 0xf0);
	out(&port, MCR, 0x10);
	CHECK_EQ(in(&port, MSR), 0x0f);
	port_close(&port);
}

static void test_transmitter_interrupt(void)
{
	struct port port = port_open(0);

	/* Enabling it tells at once, and again whenever it is enabled anew: Linux checks that. */
	for (int i = 0; i < 2; i++) {
		out(&port, IER, 0x02);
		CHECK_EQ(edges(&port), 1);
		CHECK_EQ(in(&port, IIR), 0x02);
		CHECK_EQ(in(&port, IIR), 0x01); /* reading it was the answer */
		out(&port, IER, 0);
	}
	out(&port, IER, 0x02);
	CHECK_EQ(edges(&port), 1);
	in(&port, IIR);
	for (int i = 0; i < 16; i++)
		out(&port, DATA, '.');
	CHECK_EQ(edges(&port), 1); /* one for the burst: nothing was looked at in between */
	/* A driver that does not care for the identification gets its edges too. */
	CHECK_EQ(in(&port, LSR), 0x60);
	out(&port, DATA, '.');
	CHECK_EQ(edges(&port), 1);
	CHECK_EQ(in(&port, IIR), 0x02);
	port_close(&port);
}

static void test_receive_trigger_levels(void)
{
	static const uint8_t levels[] = {1, 4, 8, 14};
	struct port port = port_open(0);
	char text[16];

	for (uint8_t i = 0; i < 4; i++) {
		memset(text, 'r', levels[i]);
		text[levels[i]] = '\0';
		out(&port, FCR, (uint8_t)(0x03 | i << 6));
		send(&port, text);
		out(&port, IER, 0x01);
		CHECK_EQ(edges(&port), 1);
		CHECK_EQ(in(&port, IIR), 0xc4);
		CHECK_EQ(in(&port, DATA), 'r');
		/* Below the level there is nothing, until the rest has waited long enough. */
		if (levels[i] > 1) {
			wait_edge(&port);
			CHECK_EQ(in(&port, IIR), 0xcc);
			while (in(&port, LSR) & 1)
				CHECK_EQ(in(&port, DATA), 'r');
		}
		CHECK_EQ(in(&port, IIR), 0xc1);
		out(&port, IER, 0);
	}
	port_close(&port);
}

static void test_few_bytes_interrupt_at_once(void)
{
	struct port port = port_open(0);

	out(&port, FCR, 0x81);
	out(&port, IER, 0x01);
	write_all(port.to_guest, "k", 1);
	wait_edge(&port);
	CHECK_EQ(in(&port, IIR), 0xcc);
	CHECK_EQ(in(&port, LSR), 0x61);
	CHECK_EQ(in(&port, DATA), 'k');
	CHECK_EQ(in(&port, LSR), 0x60);
	CHECK_EQ(in(&port, IIR), 0xc1);
	CHECK_EQ(edges(&port), 0);
	port_close(&port);
}

static void test_bytes_left_behind_interrupt_again(void)
{
	struct port port = port_open(0);

	out(&port, FCR, 0x81);
	send(&port, "12345");
	out(&port, IER, 0x01);
	CHECK_EQ(edges(&port), 1);
	for (char expected = '1'; expected <= '5'; expected++) {
		CHECK_EQ(in(&port, IIR), 0xcc);
		CHECK_EQ(in(&port, DATA), expected);
		if (expected < '5')
			wait_edge(&port);
	}
	CHECK_EQ(in(&port, IIR), 0xc1);
	port_close(&port);
}

static void test_one_byte_at_a_time_without_fifo(void)
{
	struct port port = port_open(0);

	send(&port, "abc");
	out(&port, IER, 0x01);
	for (char expected = 'a'; expected <= 'c'; expected++) {
		CHECK_EQ(edges(&port), 1);
		CHECK_EQ(in(&port, IIR), 0x04);
		CHECK_EQ(in(&port, DATA), expected);
	}
	CHECK_EQ(edges(&port), 0);
	CHECK_EQ(in(&port, IIR), 0x01);
	port_close(&port);
}

/* What Linux does to a port when it is found and then opened, with input waiting all the time. */
static void test_early_input_survives_the_opening(void)
{
	struct port port = port_open(0);
	const char text[] = "typed before anybody listened";

	send(&port, text);
	out(&port, IER, 0);
	for (int i = 0; i < 2; i++) {
		out(&port, FCR, 0x01);
		out(&port, FCR, 0x07);
		out(&port, FCR, 0x00);
		in(&port, LSR);
		in(&port, DATA);
		in(&port, IIR);
		in(&port, MSR);
		in(&port, LSR); /* is there a port? */
		in(&port, LSR); /* is the transmitter empty? */
		out(&port, IER, 0x02);
		in(&port, IIR);
		out(&port, IER, 0x00);
		in(&port, LSR);
		in(&port, DATA);
		in(&port, IIR);
		in(&port, MSR);
	}
	out(&port, IER, 0x05);
	out(&port, FCR, 0x01);
	out(&port, FCR, 0x81);
	wait_edge(&port);
	for (const char *at = text; *at; at++) {
		CHECK_EQ(in(&port, LSR) & 1, 1);
		CHECK_EQ(in(&port, DATA), *at);
	}
	CHECK_EQ(in(&port, LSR) & 1, 0);
	port_close(&port);
}

static void test_polling_receiver(void)
{
	struct port port = port_open(0);

	send(&port, "poll");
	/* Looking once, as before a transmission, is no poll for input. */
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(in(&port, LSR), 0x60);
		out(&port, DATA, '-');
	}
	for (const char *at = "poll"; *at; at++) {
		WAIT_FOR(in(&port, LSR) & 1);
		CHECK_EQ(in(&port, DATA), *at);
	}
	port_close(&port);
}

static void test_break_and_priorities(void)
{
	struct port port = port_open(PV_CONSOLE_ESCAPE);

	out(&port, FCR, 0x01);
	out(&port, IER, 0x0f);
	CHECK_EQ(in(&port, IIR), 0xc2);
	CHECK_EQ(edges(&port), 1);
	write_all(port.to_guest, "a\001b", 3);
	WAIT_FOR((in(&port, IIR) & 0x0f) == 0x04);
	CHECK_EQ(in(&port, DATA), 'a');
	WAIT_FOR((in(&port, IIR) & 0x0f) == 0x06); /* the break has become the oldest */
	out(&port, MCR, 0x10);
	CHECK_EQ(in(&port, IIR), 0xc6);
	CHECK_EQ(in(&port, LSR), 0xf1);
	CHECK_EQ(in(&port, LSR), 0x61);
	CHECK_EQ(in(&port, IIR), 0xc4);
	CHECK_EQ(in(&port, DATA), 0);
	out(&port, DATA, 'l');
	CHECK_EQ(in(&port, IIR), 0xc4);
	CHECK_EQ(in(&port, DATA), 'l');
	CHECK_EQ(in(&port, IIR), 0xc2);
	CHECK_EQ(in(&port, IIR), 0xc0);
	CHECK_EQ(in(&port, MSR), 0x0b);
	CHECK_EQ(in(&port, IIR), 0xc1);
	port_close(&port);
}

static void test_busy_transmitter(void)
{
	struct port port = port_open(0);
	struct pv_console_stats stats;
	uint64_t accepted = 0, taken = 0;
	uint8_t byte;

	/* Nobody reads: the pipe and half of the ring fill up. */
	while (in(&port, LSR) & 0x20) {
		out(&port, DATA, (uint8_t)accepted++);
		if (accepted % 4096 == 0)
			usleep(2000);
	}
	CHECK_EQ(in(&port, LSR) & 0x40, 0);
	out(&port, IER, 0x02);
	CHECK_EQ(in(&port, IIR), 0x01);
	edges(&port);
	/* One who writes all the same is heard until the ring is full. */
	for (int i = 0; i < 20000; i++)
		out(&port, DATA, (uint8_t)accepted++);
	pv_console_stats(port.console, &stats);
	CHECK_EQ(stats.bytes_dropped, 0);
	CHECK_EQ(edges(&port), 0);
	while (!readable(port.irq, 0)) {
		read_all(port.from_guest, &byte, 1);
		CHECK_EQ(byte, (uint8_t)taken++);
	}
	CHECK_EQ(in(&port, IIR), 0x02);
	CHECK(in(&port, LSR) & 0x20);
	while (taken < accepted) {
		read_all(port.from_guest, &byte, 1);
		CHECK_EQ(byte, (uint8_t)taken++);
	}
	port_close(&port);
}

static void test_full_ring_counts_what_it_drops(void)
{
	struct port port = port_open(0);
	struct pv_console_stats stats;
	const uint64_t written = 400000;
	uint64_t taken = 0;
	uint8_t data[4096];

	for (uint64_t i = 0; i < written; i++)
		out(&port, DATA, 'x');
	pv_console_stats(port.console, &stats);
	CHECK(stats.bytes_dropped > 0);
	while (taken < written - stats.bytes_dropped) {
		CHECK(readable(port.from_guest, 10000));
		taken += (uint64_t)read(port.from_guest, data, sizeof(data));
	}
	CHECK_EQ(taken, written - stats.bytes_dropped);
	CHECK(!readable(port.from_guest, 20));
	port_close(&port);
}

/* A driver in the manner of Linux's: it runs when the line has risen and at no other time. */
#define STREAM 200000

struct driver {
	struct port *port;
	uint32_t sent;
	uint32_t received;
	bool fifo;
	bool sends;
	bool receives;
	bool loops; /* until nothing is pending; else one pass for each edge */
};

static uint8_t pattern(uint32_t position)
{
	return (uint8_t)(position * 7 + (position >> 8));
}

static void serve_once(struct driver *d, uint8_t lsr)
{
	for (int i = 0; d->receives && (lsr & 0x01) && i < (d->fifo ? 256 : 1); i++) {
		CHECK_EQ(in(d->port, DATA), pattern(d->received));
		d->received++;
		if (d->fifo)
			lsr = in(d->port, LSR);
	}
	if (!d->sends || !(lsr & 0x20))
		return;
	for (int i = 0; i < (d->fifo ? 16 : 1) && d->sent < STREAM; i++)
		out(d->port, DATA, pattern(d->sent++));
	if (d->sent == STREAM)
		out(d->port, IER, d->receives ? 0x05 : 0x00);
}

static void *driver_thread(void *argument)
{
	struct driver *d = argument;
	uint8_t iir;

	out(d->port, FCR, d->fifo ? 0x81 : 0x00);
	out(d->port, IER, (uint8_t)((d->receives ? 0x05 : 0) | (d->sends ? 0x02 : 0)));
	while ((d->sends && d->sent < STREAM) || (d->receives && d->received < STREAM)) {
		wait_edge(d->port);
		do {
			iir = in(d->port, IIR);
			if (!(iir & 0x01))
				serve_once(d, in(d->port, LSR));
		} while (d->loops && !(iir & 0x01));
	}
	return NULL;
}

static void *feeder_thread(void *argument)
{
	struct port *port = argument;
	uint8_t piece[977];

	for (uint32_t at = 0; at < STREAM;) {
		uint32_t count = STREAM - at < sizeof(piece) ? STREAM - at : sizeof(piece);

		for (uint32_t i = 0; i < count; i++)
			piece[i] = pattern(at + i);
		/* Sizes that leave the FIFO at every level. */
		count = 1 + at % count;
		write_all(port->to_guest, piece, count);
		at += count;
	}
	return NULL;
}

static void drive(struct driver driver)
{
	struct port port = port_open(0);
	pthread_t guest, feeder;
	struct pv_console_stats stats;

	driver.port = &port;
	CHECK_EQ(pthread_create(&guest, NULL, driver_thread, &driver), 0);
	if (driver.receives)
		CHECK_EQ(pthread_create(&feeder, NULL, feeder_thread, &port), 0);
	for (uint32_t at = 0; driver.sends && at < STREAM;) {
		uint8_t data[3000];
		ssize_t count;

		CHECK(readable(port.from_guest, 10000));
		count = read(port.from_guest, data, sizeof(data));
		CHECK(count > 0);
		for (ssize_t i = 0; i < count; i++)
			CHECK_EQ(data[i], pattern(at++));
		if (at % 5 == 0)
			usleep(500); /* slower than the guest, so that it has to wait */
	}
	CHECK_EQ(pthread_join(guest, NULL), 0);
	if (driver.receives)
		CHECK_EQ(pthread_join(feeder, NULL), 0);
	pv_console_stats(port.console, &stats);
	CHECK_EQ(stats.bytes_dropped, 0);
	port_close(&port);
}

static void test_no_interrupt_is_lost(void)
{
	drive((struct driver){.fifo = true, .sends = true, .receives = true, .loops = true});
	drive((struct driver){.fifo = false, .sends = true, .receives = true, .loops = true});
	drive((struct driver){.fifo = true, .sends = true});
	drive((struct driver){.fifo = false, .sends = true});
	drive((struct driver){.fifo = false, .receives = true});
}

/* Every register at once from several threads: for the thread sanitizer, and for the bounds. */
static void *hammer_thread(void *argument)
{
	struct port *port = argument;
	uint32_t random = 12345 + (uint32_t)(uintptr_t)&random;

	for (int i = 0; i < 20000; i++) {
		random = random * 1664525 + 1013904223;
		if (random & 0x10000)
			out(port, (random >> 17) & 7, (uint8_t)(random >> 24));
		else
			in(port, (random >> 17) & 7);
	}
	return NULL;
}

static atomic_bool hammering;

static void *drain_thread(void *argument)
{
	struct port *port = argument;
	struct pv_console_stats stats;
	uint8_t data[4096];

	while (atomic_load(&hammering)) {
		if (readable(port->from_guest, 1))
			CHECK(read(port->from_guest, data, sizeof(data)) > 0);
		if (write(port->to_guest, "\001b in", 5) < 0)
			CHECK_EQ(errno, EAGAIN);
		pv_console_stats(port->console, &stats);
		pv_console_first_output_ns(port->console);
	}
	return NULL;
}

static void test_hammered_from_all_sides(void)
{
	struct port port = port_open(PV_CONSOLE_ESCAPE);
	pthread_t threads[3], drain;

	CHECK_EQ(fcntl(port.to_guest, F_SETFL, O_NONBLOCK), 0);
	atomic_store(&hammering, true);
	CHECK_EQ(pthread_create(&drain, NULL, drain_thread, &port), 0);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, hammer_thread, &port), 0);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	atomic_store(&hammering, false);
	CHECK_EQ(pthread_join(drain, NULL), 0);
	out(&port, LCR, 0);
	out(&port, SCR, 0x77);
	CHECK_EQ(in(&port, SCR), 0x77);
	port_close(&port);
}

int main(void)
{
	RUN(test_plain_registers);
	RUN(test_identified_as_16550a);
	RUN(test_loopback);
	RUN(test_host_input_waits_out_loopback);
	RUN(test_modem_status_interrupt);
	RUN(test_transmitter_interrupt);
	RUN(test_receive_trigger_levels);
	RUN(test_few_bytes_interrupt_at_once);
	RUN(test_bytes_left_behind_interrupt_again);
	RUN(test_one_byte_at_a_time_without_fifo);
	RUN(test_early_input_survives_the_opening);
	RUN(test_polling_receiver);
	RUN(test_break_and_priorities);
	RUN(test_busy_transmitter);
	RUN(test_full_ring_counts_what_it_drops);
	RUN(test_no_interrupt_is_lost);
	RUN(test_hammered_from_all_sides);
	return 0;
}
