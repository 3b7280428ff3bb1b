/* The host's end of a port: a connected socket, or the clients of one that is listened on. */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "port/internal.h"

static void tell(struct pv_ports *ports, struct pv_port *port, enum pv_port_counter counter)
{
	pv_port_count(ports, counter, 1);
	if (port->ready)
		port->owed |= PV_PORT_OWES_OPEN;
}

void pv_port_accept(struct pv_ports *ports, struct pv_port *port)
{
	int fd = accept4(port->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0) {
		ports->refused |= errno != EAGAIN && errno != EINTR && errno != ECONNABORTED;
		return;
	}
	port->fd = fd;
	port->accepted = true;
	port->deaf = port->hung_up = false;
	port->in_wait = PV_PORT_MORE;
	tell(ports, port, PV_PORT_OPENED);
}

void pv_port_hang_up(struct pv_ports *ports, struct pv_port *port)
{
	/* A peer that closed one direction alone waits for the end of the other. */
	shutdown(port->fd, SHUT_RDWR);
	if (port->accepted)
		close(port->fd);
	port->fd = -1;
	port->accepted = false;
	port->in_wait = PV_PORT_IDLE;
	if (port->out_wait == PV_PORT_HOST)
		port->out_wait = PV_PORT_MORE;
	tell(ports, port, PV_PORT_CLOSED);
}

void pv_port_peer_closed(struct pv_ports *ports, struct pv_port *port)
{
	ssize_t bytes;
	char byte;

	do
		bytes = recv(port->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
	while (bytes < 0 && errno == EINTR);
	if (bytes > 0)
		port->hung_up = true;
	else if (bytes == 0 || errno != EAGAIN)
		pv_port_hang_up(ports, port);
}
