/* The host's end of a port: a connected socket, the clients of one that is listened on, a terminal,
 * the master of a pty, files, memory, or nobody. */
#include <errno.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "port/internal.h"
#include "virtio/irq.h"

#define NS_PER_MS UINT64_C(1000000)
#define RETRY_NS (250 * NS_PER_MS) /* look again at what cannot be used now */
#define SIZE_NS (1000 * NS_PER_MS) /* nobody tells of the size of a pty */

static void tell(struct pv_ports *ports, struct pv_port *port, bool there)
{
	atomic_store(&port->there, there);
	pv_port_count(ports, there ? PV_PORT_OPENED : PV_PORT_CLOSED, 1);
	if (port->ready)
		port->owed |= PV_PORT_OWES_OPEN;
}

static int open_streams(struct pv_port *port, int in_fd, int out_fd)
{
	int result = pv_stream_open(&port->in, in_fd, PV_STREAM_READ);

	if (result == 0)
		result = pv_stream_open(&port->out, out_fd, PV_STREAM_WRITE);
	if (result < 0)
		pv_port_close_host(port);
	port->socket = in_fd == out_fd && port->in.socket;
	return result;
}

static int open_client(struct pv_port *port, int fd)
{
	int result = pv_stream_open_client(&port->in, fd);

	if (result == 0)
		result = pv_stream_open_client(&port->out, fd);
	if (result < 0)
		pv_port_close_host(port);
	port->socket = true;
	return result;
}

void pv_port_close_host(struct pv_port *port)
{
	pv_stream_close(&port->in);
	pv_stream_close(&port->out);
}

int pv_port_open_host(struct pv_ports *ports, struct pv_port *port,
                      const struct pv_port_config *config)
{
	int result;

	if (config->listen_fd >= 0 && (config->in_fd >= 0 || config->out_fd >= 0))
		return -EINVAL;
	port->listen_fd = config->listen_fd;
	port->quit_fd = config->quit_fd;
	port->flags = config->flags;
	result = open_streams(port, config->in_fd, config->out_fd);
	if (result < 0)
		return result;
	port->out.ringbuf = config->ringbuf;
	if (port->out.pty_master || (port->out.fd >= 0 && isatty(port->out.fd)))
		port->size_fd = config->flags & PV_PORT_CONSOLE ? config->out_fd : -1;
	if (port->out.pty_master)
		port->look_at = 1;
	else if (port->listen_fd < 0)
		tell(ports, port, true);
	pv_port_see_size(ports, port);
	return 0;
}

void pv_port_accept(struct pv_ports *ports, struct pv_port *port)
{
	int fd = accept4(port->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0) {
		ports->refused |= errno != EAGAIN && errno != EINTR && errno != ECONNABORTED;
		return;
	}
	if (open_client(port, fd) < 0) {
		ports->refused = true;
	} else {
		port->hung_up = false;
		port->in_wait = PV_PORT_MORE;
		tell(ports, port, true);
	}
	close(fd);
}

void pv_port_hang_up(struct pv_ports *ports, struct pv_port *port)
{
	port->in_wait = PV_PORT_IDLE;
	if (!port->socket) {
		pv_stream_close(&port->in);
		return;
	}
	/* A peer that closed one direction alone waits for the end of the other. */
	shutdown(port->in.fd, SHUT_RDWR);
	pv_port_close_host(port);
	if (port->out_wait == PV_PORT_HOST)
		port->out_wait = PV_PORT_MORE;
	tell(ports, port, false);
}

void pv_port_leave(struct pv_ports *ports, struct pv_port *port)
{
	port->look_at = pv_now_ns() + RETRY_NS;
	port->in_wait = PV_PORT_IDLE;
	if (!port->out.pty_master || !atomic_load(&port->there))
		return;
	if (port->out_wait == PV_PORT_HOST)
		port->out_wait = PV_PORT_MORE;
	tell(ports, port, false);
}

void pv_port_peer_closed(struct pv_ports *ports, struct pv_port *port)
{
	char byte;
	struct iovec iov = {&byte, 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t bytes;

	do
		bytes = recvmsg(port->in.fd, &message, MSG_PEEK | MSG_DONTWAIT);
	while (bytes < 0 && errno == EINTR);
	if (bytes > 0)
		port->hung_up = true;
	else if (bytes == 0 || errno != EAGAIN)
		pv_port_hang_up(ports, port);
}

static bool is_left(const struct pv_port *port)
{
	return port->out.pty_master && (pv_stream_look(&port->out, 0) & POLLHUP);
}

void pv_port_look(struct pv_ports *ports, struct pv_port *port)
{
	if (is_left(port)) {
		pv_port_leave(ports, port);
		return;
	}
	port->look_at = port->out.pty_master && port->size_fd >= 0 ? pv_now_ns() + SIZE_NS : 0;
	if (port->in_wait == PV_PORT_IDLE)
		port->in_wait = PV_PORT_MORE;
	if (!atomic_load(&port->there))
		tell(ports, port, true);
	pv_port_see_size(ports, port);
}

void pv_port_see_size(struct pv_ports *ports, struct pv_port *port)
{
	struct winsize now;
	uint32_t size;

	if (port->size_fd < 0 || ioctl(port->size_fd, TIOCGWINSZ, &now) < 0)
		return;
	size = now.ws_col | (uint32_t)now.ws_row << 16;
	if (now.ws_col == 0 || now.ws_row == 0 || size == atomic_load(&port->size))
		return;
	atomic_store(&port->size, size);
	if (port->ready)
		port->owed |= PV_PORT_OWES_SIZE;
	else if (ports->irq && !ports->control.in.ring && port == ports->port)
		pv_virtio_irq_news(ports->irq);
}
