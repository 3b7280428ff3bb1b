/* A fuzz target: the input is a saved state that nobody has looked at, of a ring, a serial port, the
 * ports of a console device or a NIC, and what is done with the device that took it. Every fault
 * that a sanitizer can see, an endless loop, and a field that a device could not have said itself
 * ends the run.
 *
 *     make fuzz TARGET=state
 *
 * The first byte chooses the device, then comes its state; then instructions, a byte and what it
 * takes. */
#include "console/uart.h"
#include "fuzz/driver.h"
#include "fuzz/ports.h"
#include "net/internal.h"

enum { FIFO_ENABLED = 1 };

static void serve_ring(struct driver *driver, struct pv_chain *chain)
{
	struct pv_virtqueue *ring = driver->rings[0];

	pv_virtqueue_disable_kicks(ring);
	for (unsigned i = 0; i < 2 * SIZE && pv_virtqueue_pop(ring, chain) == 1; i++) {
		for (int j = 0; j < chain->readable + chain->writable; j++)
			REQUIRE(inside(driver, &chain->iov[j]));
		REQUIRE(pv_virtqueue_push(ring, chain->head, 0) == 0);
	}
	pv_virtqueue_publish(ring);
	(void)pv_virtqueue_needs_notify(ring);
	(void)pv_virtqueue_enable_kicks(ring);
	REQUIRE(pv_virtqueue_in_flight(ring) == 0);
}

static void try_ring(struct input *input)
{
	struct pv_chain *chain = malloc(sizeof(*chain));
	uint16_t next_avail = (uint16_t)take(input, 2), next_used = (uint16_t)take(input, 2);
	uint16_t avail, used;
	struct driver driver = {0};

	REQUIRE(chain);
	driver_init(&driver, (uint8_t)take(input, 1) & 1);
	(void)make_queue(&driver, 0);
	pv_virtqueue_restore(driver.rings[0], next_avail, next_used);
	pv_virtqueue_save(driver.rings[0], &avail, &used);
	REQUIRE(avail == next_avail && used == next_used);
	/* A driver that goes on there, or anywhere. */
	if (take(input, 1) & 1)
		((struct pv_avail *)(void *)(driver.ram + 0x400))->idx = next_avail;
	while (input->size > 0) {
		uint8_t code = (uint8_t)take(input, 1);

		if (code % 5 < 4)
			drive(&driver, input, code % 5, 0);
		else
			serve_ring(&driver, chain);
	}
	driver_destroy(&driver);
	free(chain);
}

static void try_uart(struct input *input)
{
	struct pv_console *console;
	struct pv_uart_state state, after;
	uint8_t waiting[32];
	struct pv_uart *uart;
	uint32_t count = (uint32_t)take(input, 1) % sizeof(waiting);

	take_bytes(input, waiting, sizeof(waiting));
	take_bytes(input, &state, sizeof(state));
	/* As the host's bytes have to be, for some of the time. */
	if (take(input, 1) & 1)
		memcpy(state.bytes, waiting, sizeof(state.bytes));
	if (take(input, 1) & 1)
		state.count %= PV_UART_FIFO + 1;
	REQUIRE(pv_console_new(&console) == 0);
	REQUIRE(pv_uart_new(-1, console, &uart) == 0);
	REQUIRE(pv_console_restore(console, waiting, count, waiting, count) == 0);
	if (pv_uart_restore(uart, &state) == 0)
		REQUIRE(state.count <= (state.fcr & FIFO_ENABLED ? PV_UART_FIFO : 1));
	pv_uart_resume(uart);
	while (input->size > 0) {
		uint8_t code = (uint8_t)take(input, 1);

		if (code & 0x80)
			pv_uart_write(uart, code & 7, (uint8_t)take(input, 1));
		else
			(void)pv_uart_read(uart, code & 7);
		pv_uart_save(uart, &after);
		REQUIRE(after.count <= PV_UART_FIFO);
	}
	pv_uart_free(uart);
	pv_console_free(console);
}

static void serve_and_check(struct pv_ports *ports)
{
	serve_ports(ports);
	REQUIRE(ports->port[1].owed <= PV_PORT_OWES_ALL);
}

static void try_ports(struct input *input)
{
	const struct pv_port_config config = {
		.number = 1, .in_fd = -1, .out_fd = -1, .listen_fd = -1, .quit_fd = -1, .name = "name"};
	struct pv_ports_activation activation = {.count = 2};
	struct pv_port_pair pairs[2];
	struct driver driver = {0};
	struct pv_port_state state;
	struct pv_ports *ports;

	driver_init(&driver, (uint8_t)take(input, 1) & 1);
	for (unsigned i = 0; i < QUEUES_MAX; i++)
		(void)make_queue(&driver, i);
	pairs[0] = (struct pv_port_pair){{driver.rings[4], -1}, {driver.rings[5], -1}};
	pairs[1] = (struct pv_port_pair){{driver.rings[0], -1}, {driver.rings[1], -1}};
	activation.control = (struct pv_port_pair){{driver.rings[2], -1}, {driver.rings[3], -1}};
	activation.pairs = pairs;
	activation.irq = driver.irq;
	REQUIRE(pv_ports_new(&config, 1, &ports) == 0);
	take_bytes(input, &state, sizeof(state));
	if (take(input, 1) & 1)
		state.taken %= 64;
	REQUIRE(pv_ports_restore(ports, (uint32_t)take(input, 4) | 2, &state) < 0);
	REQUIRE(pv_ports_restore(ports, 0, &state) < 0);
	REQUIRE(pv_ports_restore(ports, 1, &state) == 0);
	pv_ports_begin(ports, &activation);
	while (input->size > 0 && !ports->broken) {
		uint8_t code = (uint8_t)take(input, 1);

		if (code % 5 < 4)
			drive(&driver, input, code % 5, code / 16 % QUEUES_MAX);
		else
			serve_and_check(ports);
	}
	pv_ports_free(ports);
	driver_destroy(&driver);
}

static void try_net(struct input *input)
{
	struct pv_net_config config = {.mac = {2}};
	struct pv_net_state *state = calloc(2, sizeof(*state));
	uint8_t frame[PV_NET_PEEK];
	struct pv_net *net;

	REQUIRE(state && pv_net_new(&config, &net) == 0);
	state->mode.unicast.count = (uint16_t)take(input, 2);
	state->mode.multicast.count = (uint16_t)take(input, 2);
	state->pairs = (uint32_t)take(input, 4);
	state->mode.offloads = (uint32_t)take(input, 4);
	state->mode.filters_vlans = take(input, 1) & 1;
	take_bytes(input, state->mode.mac, 6);
	if (take(input, 1) & 1)
		state->pairs %= 4;
	if (pv_net_restore(net, state) == 0) {
		pv_net_save(net, &state[1]);
		REQUIRE(state[1].pairs >= 1 && state[1].pairs <= PV_NET_PAIRS);
		REQUIRE(state[1].mode.unicast.count <= PV_NET_ADDRESSES);
		REQUIRE(state[1].mode.multicast.count <= PV_NET_ADDRESSES);
		REQUIRE((state[1].mode.mac[0] & 1) == 0);
		while (input->size > 0) {
			take_bytes(input, frame, sizeof(frame));
			(void)pv_net_mode_wants(&state[1].mode, frame);
		}
	}
	REQUIRE(pv_net_stop(net, 0) == 0);
	pv_net_free(net);
	free(state);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const TRY[])(struct input *) = {try_ring, try_uart, try_ports, try_net};
	struct input input = {data, size};

	TRY[take(&input, 1) % 4](&input);
	return 0;
}
