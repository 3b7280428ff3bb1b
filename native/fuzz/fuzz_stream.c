/* A fuzz target: the input is what somebody on the host does with the stream socket that a NIC's
 * packets go through, and the lengths of those. Every fault that a sanitizer can see, and a packet
 * that does not come as it was sent ends the run.
 *
 *     make fuzz TARGET=stream
 *
 * The input is instructions, a byte and what it takes. */
#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz/input.h"
#include "net/internal.h"

enum { PREFIX = 4, QUEUE = 16, ROOM = PV_NET_HEADER + PV_NET_FRAME_MAX, PIECES = 8 };

/* Packets on their way: each is of one value, its number. */
struct line {
	uint32_t length[QUEUE];
	uint8_t first, count;
};

struct bench {
	struct pv_net_port port;
	int own, peer;
	struct line in, out;
	bool is_raw; /* the peer has said what is no packet */
	uint8_t *room;
	uint8_t *unsaid; /* of the peer, who says it by and by */
	size_t unsaid_at, unsaid_end;
	uint8_t prefix[PREFIX]; /* of the packet that the peer reads */
	uint32_t read;          /* of that, with its prefix */
};

static void *make_room(size_t size)
{
	void *room = malloc(size);

	REQUIRE(room);
	return room;
}

static struct bench *bench_new(void)
{
	struct bench *bench = calloc(1, sizeof(*bench));
	int ends[2];

	REQUIRE(bench && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
	/* As little as there may be, that it is full soon. */
	REQUIRE(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &(int){1}, sizeof(int)) == 0);
	bench->own = ends[0];
	bench->peer = ends[1];
	bench->room = make_room(ROOM);
	bench->unsaid = make_room(ROOM);
	REQUIRE(pv_net_stream_open(&bench->port, bench->own) == 0);
	return bench;
}

static void bench_free(struct bench *bench)
{
	bench->port.ops->close(&bench->port);
	close(bench->own);
	if (bench->peer >= 0)
		close(bench->peer);
	free(bench->room);
	free(bench->unsaid);
	free(bench);
}

static uint32_t take_length(struct input *input)
{
	uint8_t choice = (uint8_t)take(input, 1);

	if (choice < 128)
		return choice;
	return choice < 250 ? (uint32_t)take(input, 2) : PV_NET_FRAME_MAX;
}

static void push(struct line *line, uint32_t length)
{
	line->length[(line->first + line->count++) % QUEUE] = length;
}

static uint32_t pop(struct line *line)
{
	REQUIRE(line->count-- > 0);
	return line->length[line->first++ % QUEUE];
}

static void check_content(const struct line *line, const uint8_t *data, uint32_t length)
{
	for (uint32_t i = 0; i < length; i += length / 16 + 1)
		REQUIRE(data[i] == line->first);
}

/* Let the peer say as much as the socket takes of what it has begun with. */
static void peer_says(struct bench *bench, size_t most)
{
	size_t size = bench->unsaid_end - bench->unsaid_at;
	ssize_t bytes = send(bench->peer, bench->unsaid + bench->unsaid_at, size < most ? size : most,
	                     MSG_DONTWAIT | MSG_NOSIGNAL);

	bench->unsaid_at += bytes > 0 ? (size_t)bytes : 0;
}

static void peer_begins(struct bench *bench, struct input *input)
{
	uint32_t length = take_length(input), prefix = htonl(length);
	uint8_t number = (uint8_t)(bench->in.first + bench->in.count);

	if (bench->in.count == QUEUE || bench->unsaid_at < bench->unsaid_end)
		return;
	bench->unsaid_at = 0;
	bench->unsaid_end = PREFIX + length;
	memcpy(bench->unsaid, &prefix, PREFIX);
	memset(bench->unsaid + PREFIX, number, length);
	push(&bench->in, length);
}

static void peer_errs(struct bench *bench, struct input *input)
{
	if (bench->unsaid_at < bench->unsaid_end)
		return;
	bench->is_raw = true;
	bench->unsaid_at = 0;
	bench->unsaid_end = 1 + take(input, 1) % 8;
	take_bytes(input, bench->unsaid, bench->unsaid_end);
}

/* Let the peer read one byte after the other, as packets. */
static void peer_hears(struct bench *bench, uint64_t most)
{
	uint8_t byte;

	while (most-- > 0 && recv(bench->peer, &byte, 1, MSG_DONTWAIT) == 1) {
		if (bench->read < PREFIX) {
			bench->prefix[bench->read] = byte;
		} else {
			REQUIRE(byte == bench->out.first);
		}
		bench->read++;
		if (bench->read == PREFIX) {
			uint32_t length;

			memcpy(&length, bench->prefix, PREFIX);
			REQUIRE(ntohl(length) == bench->out.length[bench->out.first % QUEUE]);
		}
		if (bench->read >= PREFIX &&
		    bench->read == PREFIX + bench->out.length[bench->out.first % QUEUE]) {
			(void)pop(&bench->out);
			bench->read = 0;
		}
	}
}

/* Cut a buffer into pieces as the input has it; return how many there are. */
static int cut(struct input *input, uint8_t *at, size_t size, struct iovec *iov)
{
	int count = 0;

	while (count < PIECES - 1 && size > 1) {
		size_t piece = 1 + take(input, 1);

		piece = piece < size ? piece : size - 1;
		iov[count++] = (struct iovec){at, piece};
		at += piece;
		size -= piece;
	}
	iov[count++] = (struct iovec){at, size};
	return count;
}

static void receive(struct bench *bench, struct input *input)
{
	static const uint8_t NO_HEADER[PV_NET_HEADER];
	struct iovec iov[PIECES];
	int count = cut(input, bench->room, ROOM, iov);
	ssize_t bytes = bench->port.ops->receive(&bench->port, iov, count);
	uint32_t length;

	if (bytes < 0) {
		REQUIRE(bytes == -EAGAIN || bytes == -EPIPE);
		return;
	}
	REQUIRE(bytes >= PV_NET_HEADER && bytes <= ROOM);
	REQUIRE(memcmp(bench->room, NO_HEADER, PV_NET_HEADER) == 0);
	if (bench->is_raw)
		return;
	length = (uint32_t)bytes - PV_NET_HEADER;
	check_content(&bench->in, bench->room + PV_NET_HEADER, length);
	REQUIRE(length == pop(&bench->in));
}

static void send_packet(struct bench *bench, struct input *input)
{
	uint32_t length = take_length(input);
	struct iovec iov[PIECES + 1] = {{bench->room, PV_NET_HEADER}};
	int count, result;

	if (bench->out.count == QUEUE || length < PV_NET_FRAME_MIN)
		return;
	memset(bench->room, (uint8_t)(bench->out.first + bench->out.count), ROOM);
	count = 1 + cut(input, bench->room + PV_NET_HEADER, length, &iov[1]);
	result = bench->port.ops->send(&bench->port, iov, count);
	REQUIRE(result == 0 || result == -EAGAIN || result == -EPIPE);
	if (result == 0)
		push(&bench->out, length);
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);

	switch (bench->peer < 0 ? 7 + code % 4 : code % 11) {
	case 0:
	case 1:
		peer_begins(bench, input);
		break;
	case 2:
		if (code / 16 == 15)
			peer_errs(bench, input);
		break;
	case 3:
	case 4:
		peer_says(bench, code & 0x80 ? ROOM : 1 + take(input, 1));
		break;
	case 5:
		peer_hears(bench, take(input, 2));
		break;
	case 6:
		if (code / 16 == 15) {
			close(bench->peer);
			bench->peer = -1;
		}
		break;
	case 7:
	case 8:
		receive(bench, input);
		break;
	case 9:
		(void)bench->port.ops->flush(&bench->port);
		break;
	default:
		send_packet(bench, input);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new();

	while (input.size > 0)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
