/* A fuzz target: the input is a driver that keeps no rule, on both queues of a socket device, and a
 * host with clients and a server, which talk, listen and close as they like. Every fault that a
 * sanitizer can see, an endless loop, a receive buffer that is held between rounds, a byte that is
 * made up, and a bound that is passed ends the run.
 *
 *     make fuzz TARGET=vsock
 *
 * The first byte chooses the features; then come instructions, a byte and what it takes. */
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "fuzz/driver.h"
#include "vsock/internal.h"

enum { RX, TX, QUEUES };
enum { CID = 3, SERVER_PORT = 1, CONNECTIONS = 6, CLIENTS = 3, ENDS = 8 };
enum { PACKET_AT = 0x4000, BUFFER_AT = 0x5000 };

struct bench {
	struct driver driver;
	struct pv_vsock *vsock;
	int ends[ENDS]; /* of the host; -1: none */
	uint64_t said, heard, closed_unheard;
	uint32_t ports[2]; /* of the packet that the driver got last: the host's, its own */
	uint32_t count;    /* of packets offered */
};

/* Both are there for all runs. */
static int listen_fd = -1, server_fd = -1;
static char path[64];

static int listen_at(const char *at)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", at);
	unlink(at);
	REQUIRE(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	REQUIRE(listen(fd, 4) == 0);
	return fd;
}

static void remove_sockets(void)
{
	char at[80];

	(void)snprintf(at, sizeof(at), "%s_%d", path, SERVER_PORT);
	unlink(at);
	unlink(path);
}

static void make_sockets(void)
{
	char at[80];

	if (listen_fd >= 0)
		return;
	(void)snprintf(path, sizeof(path), "/tmp/pv-fuzz-%d", (int)getpid());
	(void)snprintf(at, sizeof(at), "%s_%d", path, SERVER_PORT);
	listen_fd = listen_at(path);
	server_fd = listen_at(at);
	atexit(remove_sockets);
}

static struct bench *bench_new(struct input *input)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	struct pv_vsock_config config = {CID, 0, path, CONNECTIONS};
	struct pv_vsock_activation activation = {0};

	REQUIRE(bench);
	make_sockets();
	config.listen_fd = listen_fd;
	driver_init(&bench->driver, take(input, 1) & 1);
	REQUIRE(pv_vsock_new(&config, &bench->vsock) == 0);
	activation.rx = make_queue(&bench->driver, RX);
	activation.tx = make_queue(&bench->driver, TX);
	activation.irq = bench->driver.irq;
	REQUIRE(pv_vsock_begin(bench->vsock, &activation) == 0);
	for (unsigned i = 0; i < ENDS; i++)
		bench->ends[i] = -1;
	return bench;
}

static void bench_free(struct bench *bench)
{
	int fd;

	pv_vsock_end(bench->vsock);
	pv_vsock_free(bench->vsock);
	driver_destroy(&bench->driver);
	for (unsigned i = 0; i < ENDS; i++)
		if (bench->ends[i] >= 0)
			close(bench->ends[i]);
	/* What waits is of this run. */
	while ((fd = accept(listen_fd, NULL, NULL)) >= 0 || (fd = accept(server_fd, NULL, NULL)) >= 0)
		close(fd);
	free(bench);
}

/* A packet that means well in most of its fields, that the rest is reached. */
static void send_packet(struct bench *bench, struct input *input)
{
	struct virtio_vsock_hdr header = {
		.src_cid = CID,
		.dst_cid = PV_VSOCK_HOST,
		.src_port = bench->ports[1],
		.dst_port = bench->ports[0],
		.type = VIRTIO_VSOCK_TYPE_STREAM,
		.buf_alloc = 4096,
	};
	struct pv_desc desc = {.address = PACKET_AT, .length = sizeof(header)};
	uint8_t choice = (uint8_t)take(input, 1), more = (uint8_t)take(input, 1);
	uint16_t head = (uint16_t)(bench->count++ % SIZE);

	header.op = choice % 16 % 9;
	if (choice & 0x10) {
		header.src_port = 7 + more % 4;
		header.dst_port = SERVER_PORT + more / 128;
	}
	header.flags = more % 4;
	if (header.op == VIRTIO_VSOCK_OP_RW) {
		header.len = (uint32_t)take(input, 2) % 0xb00;
		desc.length += choice & 0x20 && more < 8 ? 0 : header.len;
	}
	if (choice & 0x40)
		header.fwd_cnt = (uint32_t)take(input, 2);
	if (choice & 0x80)
		((uint8_t *)&header)[take(input, 1) % sizeof(header)] ^= (uint8_t)take(input, 1);
	memcpy(bench->driver.ram + PACKET_AT, &header, sizeof(header));
	memcpy(bench->driver.ram + TX * QUEUE_STEP + head * sizeof(desc), &desc, sizeof(desc));
	offer(&bench->driver, TX, head);
}

static void offer_buffer(struct bench *bench, struct input *input)
{
	uint8_t *ring = bench->driver.ram + RX * QUEUE_STEP + 0x400;
	uint16_t head = ((struct pv_avail *)(void *)ring)->idx % SIZE;
	struct pv_desc desc = {.address = BUFFER_AT, .flags = PV_DESC_WRITE};

	desc.length = 40 + (uint32_t)take(input, 1) * 4;
	memcpy(bench->driver.ram + RX * QUEUE_STEP + head * sizeof(desc), &desc, sizeof(desc));
	offer(&bench->driver, RX, head);
}

/* Look at what the driver got last. */
static void learn(struct bench *bench)
{
	struct virtio_vsock_hdr header;

	memcpy(&header, bench->driver.ram + BUFFER_AT, sizeof(header));
	if (header.dst_cid == CID && header.op > 0) {
		bench->ports[0] = header.src_port;
		bench->ports[1] = header.dst_port;
	}
}

static int *free_end(struct bench *bench)
{
	for (unsigned i = 0; i < ENDS; i++)
		if (bench->ends[i] < 0)
			return &bench->ends[i];
	return NULL;
}

static void connect_client(struct bench *bench, struct input *input)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int *end = free_end(bench);
	char line[32];
	int length;

	if (!end)
		return;
	*end = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (connect(*end, (struct sockaddr *)&address, sizeof(address)) < 0) {
		close(*end);
		*end = -1;
		return;
	}
	/* As little as there may be, that it is full soon. */
	(void)setsockopt(*end, SOL_SOCKET, SO_RCVBUF, &(int){1}, sizeof(int));
	length = snprintf(line, sizeof(line), "CONNECT %u\n", (unsigned)take(input, 1) % 4);
	REQUIRE(send(*end, line, (size_t)length, MSG_NOSIGNAL) == length);
}

static void accept_server(struct bench *bench)
{
	int *end = free_end(bench);

	if (end)
		*end = accept4(server_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

static void end_acts(struct bench *bench, struct input *input, int *end)
{
	static const uint8_t WORDS[2048];
	uint8_t words[4096], choice = (uint8_t)take(input, 1);
	ssize_t bytes;

	if (choice < 100) {
		bytes = send(*end, WORDS, choice * 20, MSG_NOSIGNAL);
		bench->said += bytes > 0 ? (uint64_t)bytes : 0;
	} else if (choice < 200) {
		while ((bytes = recv(*end, words, sizeof(words), 0)) > 0)
			bench->heard += (uint64_t)bytes;
	} else if (choice < 240) {
		shutdown(*end, choice % 3);
	} else {
		close(*end);
		*end = -1;
	}
}

static void serve(struct bench *bench)
{
	bench->vsock->rx_wait = PV_VSOCK_MORE;
	if (bench->vsock->tx_wait == PV_VSOCK_KICK)
		bench->vsock->tx_wait = PV_VSOCK_MORE;
	pv_vsock_wait(bench->vsock, 0);
	pv_vsock_serve(bench->vsock);
	learn(bench);
}

static void check(struct bench *bench)
{
	struct pv_vsock *vsock = bench->vsock;
	uint32_t used = 0, large = 0;

	for (uint32_t i = 0; i < vsock->used; i++) {
		struct pv_vsock_conn *conn = &vsock->conns[i];

		used += conn->state != PV_VSOCK_FREE;
		REQUIRE(conn->state == PV_VSOCK_FREE || conn->held <= conn->room);
		large += conn->data && conn->room == PV_VSOCK_CREDIT_LARGE;
		REQUIRE(!conn->deaf || conn->held == 0);
		if (conn->named)
			REQUIRE(pv_vsock_find(vsock, conn->guest_port, conn->host_port) == conn);
	}
	REQUIRE(large + vsock->rings.free_count == CONNECTIONS);
	REQUIRE(used <= CONNECTIONS && vsock->reply_count <= PV_VSOCK_REPLIES);
	REQUIRE(atomic_load(&vsock->counters[PV_VSOCK_BYTES_IN]) <= bench->said);
	if (!vsock->broken)
		for (unsigned i = 0; i < QUEUES; i++)
			REQUIRE(pv_virtqueue_in_flight(bench->driver.rings[i]) == 0);
}

/* Time goes by for all that has a limit. */
static void pass_time(struct bench *bench)
{
	for (uint32_t i = 0; i < bench->vsock->used; i++)
		if (bench->vsock->conns[i].deadline > 0)
			bench->vsock->conns[i].deadline = 1;
	bench->vsock->looked_at = 0;
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);
	int *end = &bench->ends[code / 16 % ENDS];

	switch (code % 16) {
	case 0:
		describe(&bench->driver, input, code / 16 % QUEUES);
		break;
	case 1:
		describe_indirect(&bench->driver, input);
		break;
	case 2:
		offer(&bench->driver, code / 16 % QUEUES, (uint16_t)take(input, 1));
		break;
	case 3:
	case 4:
	case 5:
		offer_buffer(bench, input);
		break;
	case 6:
	case 7:
	case 8:
		send_packet(bench, input);
		break;
	case 9:
		connect_client(bench, input);
		break;
	case 10:
		accept_server(bench);
		break;
	case 11:
	case 12:
		if (*end >= 0)
			end_acts(bench, input, end);
		break;
	case 13:
		pass_time(bench);
		break;
	default:
		serve(bench);
	}
	check(bench);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0 && !bench->vsock->broken)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
