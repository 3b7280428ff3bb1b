/* A stream socket with a packet behind each length, as passt and QEMU's `-netdev stream` speak.
 *
 * Frames travel without headers, so the driver is offered no offloads. Packets from the host are
 * read many at once into a buffer of our own; what the socket does not take of a packet of the
 * driver at once is kept, so that its buffer is free again. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/internal.h"
#include "virtio/iov_internal.h"

#define PREFIX 4
#define BUFFER (4 * (PREFIX + PV_NET_FRAME_MAX))

struct pv_net_stream {
	size_t start, end; /* what was read and not yet handed out */
	size_t sent, rest; /* of `left` */
	uint8_t buffer[BUFFER];
	uint8_t left[PREFIX + PV_NET_FRAME_MAX];
	struct iovec iov[PV_NET_SEGMENTS + 1];
};

/* Bytes to go until a whole packet is there; -EPROTO: no packet has such a length. */
static ssize_t lacking(const struct pv_net_stream *s)
{
	size_t have = s->end - s->start;
	uint32_t length;

	if (have < PREFIX)
		return (ssize_t)(PREFIX - have);
	memcpy(&length, s->buffer + s->start, PREFIX);
	length = ntohl(length);
	if (length > PV_NET_FRAME_MAX)
		return -EPROTO;
	return have < PREFIX + length ? (ssize_t)(PREFIX + length - have) : 0;
}

/* Read what there is, at least something. */
static int fill(struct pv_net_port *port, struct pv_net_stream *s)
{
	struct iovec iov;
	ssize_t bytes;

	memmove(s->buffer, s->buffer + s->start, s->end - s->start);
	s->end -= s->start;
	s->start = 0;
	iov = (struct iovec){s->buffer + s->end, BUFFER - s->end};
	do
		bytes = preadv2(port->fd, &iov, 1, -1, 0);
	while (bytes < 0 && errno == EINTR);
	if (bytes < 0 && errno == EAGAIN)
		return -EAGAIN;
	if (bytes <= 0)
		return -EPIPE;
	s->end += (size_t)bytes;
	return 0;
}

static ssize_t receive(struct pv_net_port *port, const struct iovec *iov, int count)
{
	static const uint8_t HEADER[PV_NET_HEADER];
	struct pv_net_stream *s = port->own;
	uint32_t length;
	ssize_t more;
	int result;

	while ((more = lacking(s)) > 0) {
		result = fill(port, s);
		if (result < 0)
			return result;
	}
	if (more < 0)
		return -EPIPE;
	memcpy(&length, s->buffer + s->start, PREFIX);
	length = ntohl(length);
	pv_iov_scatter(iov, (uint32_t)count, 0, HEADER, PV_NET_HEADER);
	pv_iov_scatter(iov, (uint32_t)count, PV_NET_HEADER, s->buffer + s->start + PREFIX, length);
	s->start += PREFIX + length;
	return PV_NET_HEADER + (ssize_t)length;
}

static ssize_t write_some(struct pv_net_port *port, struct iovec *iov, uint32_t count)
{
	struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
	ssize_t bytes;

	do
		bytes = sendmsg(port->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (bytes < 0 && errno == EINTR);
	if (bytes < 0)
		return errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM ? -EAGAIN : -EPIPE;
	return bytes;
}

static int flush(struct pv_net_port *port)
{
	struct pv_net_stream *s = port->own;

	while (s->rest > 0) {
		struct iovec iov = {s->left + s->sent, s->rest};
		ssize_t bytes = write_some(port, &iov, 1);

		if (bytes < 0)
			return (int)bytes;
		s->sent += (size_t)bytes;
		s->rest -= (size_t)bytes;
	}
	return 0;
}

static int send_packet(struct pv_net_port *port, const struct iovec *iov, int count)
{
	struct pv_net_stream *s = port->own;
	uint64_t length = 0;
	uint32_t prefix;
	ssize_t bytes;
	int result = flush(port);

	if (result < 0)
		return result;
	for (int i = 1; i < count; i++)
		length += iov[i].iov_len;
	prefix = htonl((uint32_t)length);
	memcpy(s->iov, iov, (size_t)count * sizeof(*iov));
	s->iov[0] = (struct iovec){&prefix, PREFIX};
	bytes = write_some(port, s->iov, (uint32_t)count);
	if (bytes < 0)
		return (int)bytes;
	s->sent = 0;
	s->rest = pv_iov_gather(s->iov, (uint32_t)count, (size_t)bytes, s->left, sizeof(s->left));
	return 0;
}

static void stream_close(struct pv_net_port *port)
{
	free(port->own);
}

static const struct pv_net_port_ops OPS = {
	.receive = receive,
	.send = send_packet,
	.flush = flush,
	.close = stream_close,
	.reads_ahead = true,
};

int pv_net_stream_open(struct pv_net_port *port, int fd)
{
	struct pv_net_stream *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	*port = (struct pv_net_port){.ops = &OPS, .fd = fd, .own = s};
	return 0;
}
