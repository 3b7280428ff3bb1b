/* A fuzz target: the input is a driver that keeps no rule, on all six queues of a console device
 * with one port, and a host that talks, listens, and closes as it likes. Every fault that a
 * sanitizer can see, an endless loop, a buffer that is held between rounds, and a byte that is
 * lost or made up ends the run.
 *
 *     make fuzz TARGET=port
 *
 * The first byte chooses the features, and whether it is a console with keys of the monitor; then
 * come instructions, a byte and what it takes. */
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz/driver.h"
#include "fuzz/ports.h"

enum { MESSAGE_AT = 0x7000 };

enum { IN, OUT, CONTROL_IN, CONTROL_OUT, SINK_IN, SINK_OUT, QUEUES };

struct bench {
	struct driver driver;
	struct pv_ports *ports;
	int host, own; /* ends of the connection */
	uint64_t said, heard;
};

static struct pv_port_pair make_pair(struct bench *bench, unsigned index)
{
	struct pv_queue in = make_queue(&bench->driver, index);

	return (struct pv_port_pair){in, make_queue(&bench->driver, index + 1)};
}

static void make_device(struct bench *bench, bool console)
{
	struct pv_port_config config = {.number = 1, .listen_fd = -1, .quit_fd = -1, .name = "name"};
	struct pv_ports_activation activation = {.count = 2, .irq = bench->driver.irq};
	struct pv_port_pair pairs[2];
	int ends[2];

	if (console)
		config.flags = PV_PORT_CONSOLE | PV_PORT_ESCAPE;
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
	/* As little as there may be, that it is full soon. */
	REQUIRE(setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &(int){1}, sizeof(int)) == 0);
	bench->host = ends[0];
	bench->own = config.in_fd = config.out_fd = ends[1];
	REQUIRE(pv_ports_new(&config, 1, &bench->ports) == 0);
	pairs[0] = make_pair(bench, SINK_IN);
	pairs[1] = make_pair(bench, IN);
	activation.pairs = pairs;
	activation.control = make_pair(bench, CONTROL_IN);
	pv_ports_begin(bench->ports, &activation);
}

static struct bench *bench_new(struct input *input)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	uint8_t choice;

	REQUIRE(bench);
	choice = (uint8_t)take(input, 1);
	driver_init(&bench->driver, choice & 1);
	make_device(bench, choice & 2);
	return bench;
}

static void bench_free(struct bench *bench)
{
	pv_ports_free(bench->ports);
	driver_destroy(&bench->driver);
	if (bench->host >= 0)
		close(bench->host);
	close(bench->own);
	free(bench);
}

/* What a driver sends that means well, that the rest is reached. */
static void send_message(struct bench *bench, struct input *input)
{
	struct pv_desc desc = {.address = MESSAGE_AT, .length = 8};
	uint8_t choice = (uint8_t)take(input, 1);

	uint32_t number = choice & 0x80 ? (uint32_t)take(input, choice & 0x40 ? 4 : 1) : 1;

	memset(bench->driver.ram + MESSAGE_AT, 0, 8);
	memcpy(bench->driver.ram + MESSAGE_AT, &number, sizeof(number));
	bench->driver.ram[MESSAGE_AT + 4] = choice & 7;
	bench->driver.ram[MESSAGE_AT + 6] = choice >> 3 & 1;
	memcpy(bench->driver.ram + CONTROL_OUT * QUEUE_STEP, &desc, sizeof(desc));
	offer(&bench->driver, CONTROL_OUT, 0);
}

static void offer_buffer(struct bench *bench, struct input *input, unsigned queue)
{
	struct pv_desc desc = {.address = TABLE_AT, .length = (uint32_t)take(input, 2) & 0x1fff};

	desc.flags = queue & 1 ? 0 : PV_DESC_WRITE;
	memcpy(bench->driver.ram + queue * QUEUE_STEP, &desc, sizeof(desc));
	offer(&bench->driver, queue, 0);
}

static void host_says(struct bench *bench, struct input *input)
{
	/* Keys of the monitor among them, but for help, which would be heard and not counted. */
	static const uint8_t WORDS[4096] = "\001\001\001a\001b\001x\001z";
	ssize_t bytes = send(bench->host, WORDS, take(input, 2) % sizeof(WORDS),
	                     MSG_DONTWAIT | MSG_NOSIGNAL);

	bench->said += bytes > 0 ? (uint64_t)bytes : 0;
}

static void host_listens(struct bench *bench)
{
	uint8_t words[4096];
	ssize_t bytes;

	while ((bytes = recv(bench->host, words, sizeof(words), MSG_DONTWAIT)) > 0)
		bench->heard += (uint64_t)bytes;
	REQUIRE(bench->heard == atomic_load(&bench->ports->counters[PV_PORT_BYTES_OUT]));
}

static void host_closes(struct bench *bench, struct input *input)
{
	int how = (int)(take(input, 1) % 4);

	host_listens(bench);
	if (how < 3) {
		shutdown(bench->host, how);
	} else {
		close(bench->host);
		bench->host = -1;
	}
}

static void check(struct bench *bench)
{
	struct pv_port *port = &bench->ports->port[1];

	REQUIRE(port->owed <= PV_PORT_OWES_ALL && bench->ports->port[0].owed == 0);
	REQUIRE(atomic_load(&bench->ports->counters[PV_PORT_BYTES_IN]) <= bench->said);
	if (!bench->ports->broken)
		for (unsigned i = 0; i < QUEUES; i++)
			REQUIRE(pv_virtqueue_in_flight(bench->driver.rings[i]) == 0);
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);
	unsigned what = code % 16, queue = code / 16 % QUEUES;

	switch (what) {
	case 0:
	case 1:
	case 2:
	case 3:
		drive(&bench->driver, input, what, queue);
		break;
	case 4:
	case 5:
		send_message(bench, input);
		break;
	case 6:
	case 7:
	case 8:
		offer_buffer(bench, input, queue);
		break;
	case 9:
	case 10:
		if (bench->host >= 0)
			host_says(bench, input);
		break;
	case 11:
		if (bench->host >= 0 && take(input, 1) % 4 == 0)
			host_closes(bench, input);
		break;
	case 12:
		if (bench->host >= 0)
			host_listens(bench);
		break;
	case 13:
		if (atomic_load(&bench->ports->port[1].there))
			pv_port_peer_closed(bench->ports, &bench->ports->port[1]);
		break;
	default:
		serve_ports(bench->ports);
	}
	check(bench);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0 && !bench->ports->broken)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
