/* A queue of a tap (Documentation/networking/tuntap.rst), IFF_VNET_HDR with headers of 12 bytes.
 *
 * Packets come and go by the calls that move a disk's data, without an offset: a thread that serves both
 * needs no others. */
#include <errno.h>
#include <sys/ioctl.h>

#include "net/internal.h"

/* What a packet may be lost by; any other error tells that the interface was removed: EBADFD, EIO
 * while it happens. */
static bool is_passing(int error)
{
	return error == EAGAIN || error == ENOMEM || error == ENOBUFS || error == EFAULT ||
	       error == EINVAL;
}

static ssize_t receive(struct pv_net_port *port, const struct iovec *iov, int count)
{
	ssize_t bytes;

	do
		bytes = preadv2(port->fd, iov, count, -1, 0);
	while (bytes < 0 && errno == EINTR);
	if (bytes > 0)
		return bytes;
	return bytes == 0 || !is_passing(errno) ? -EPIPE : -errno;
}

/* EIO: the interface is down. */
static int send(struct pv_net_port *port, const struct iovec *iov, int count)
{
	ssize_t bytes;

	do
		bytes = pwritev2(port->fd, iov, count, -1, 0);
	while (bytes < 0 && errno == EINTR);
	if (bytes >= 0)
		return 0;
	return errno == EBADFD || errno == EBADF ? -EPIPE : -errno;
}

static const struct pv_net_port_ops OPS;

/* Let the queue take part in the spreading of packets, or not. */
static int attach(struct pv_net_port *port, bool attached)
{
	struct {
		char name[16];
		short flags;
		char rest[22];
	} request = {.flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

	if (port->ops != &OPS || port->attached == attached)
		return 0;
	if (ioctl(port->fd, TUNSETQUEUE, &request) < 0)
		return -errno;
	port->attached = attached;
	return 0;
}

static void tap_close(struct pv_net_port *port)
{
	(void)attach(port, true);
}

static const struct pv_net_port_ops OPS = {.receive = receive, .send = send, .close = tap_close};

void pv_net_tap_open(struct pv_net_port *port, int fd)
{
	*port = (struct pv_net_port){.ops = &OPS, .fd = fd, .attached = true};
}

void pv_net_tap_set_offloads(struct pv_net_port *port, uint32_t offloads)
{
	/* What was offered, the tap has accepted before; one that is gone, a thread finds so. */
	if (port->ops == &OPS)
		(void)ioctl(port->fd, TUNSETOFFLOAD, (unsigned long)offloads);
}

int pv_net_tap_spread(struct pv_net_port *ports, uint32_t count, uint32_t pairs)
{
	int result = 0;

	for (uint32_t i = 0; i < count && result == 0; i++)
		result = attach(&ports[i], i < pairs);
	return result;
}
