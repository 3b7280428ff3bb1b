/* The thread of a console device. */
#include <poll.h>
#include <sys/eventfd.h>

#include "port/internal.h"
#include "thread_internal.h"
#include "virtio/irq.h"

#define NS_PER_S 1000000000
#define RETRY_NS NS_PER_S /* until a client that could not be accepted is tried again */
#define NAP_NS 100000     /* PV_PORT_NAP */

/* Places in the array for poll(2): three, and four for each port. */
enum { WAKE, CONTROL_IN, CONTROL_OUT, PORTS };
enum { SOCKET, LISTENER, IN, OUT, PER_PORT };

static bool owes(const struct pv_ports *ports)
{
	for (uint32_t i = 0; i < ports->count; i++)
		if (ports->port[i].owed)
			return true;
	return false;
}

/* Data is shown to the driver before the news that their sender is gone. */
void pv_port_serve(struct pv_ports *ports)
{
	if (ports->control_out_wait == PV_PORT_MORE)
		pv_port_take_messages(ports);
	for (uint32_t i = 0; i < ports->count && !ports->broken; i++) {
		struct pv_port *port = &ports->port[i];

		if (port->in_wait == PV_PORT_MORE)
			pv_port_receive(ports, port);
		if (port->out_wait == PV_PORT_MORE && !ports->broken)
			pv_port_send(ports, port);
	}
	if (ports->control_in_wait == PV_PORT_MORE && owes(ports) && !ports->broken)
		pv_port_send_messages(ports);
	if (ports->notify) {
		ports->notify = false;
		pv_port_count(ports, PV_PORT_INTERRUPTS, 1);
		pv_virtio_irq_used(ports->irq);
	}
}

static struct pollfd kick(const struct pv_queue *queue, enum pv_port_wait wait)
{
	return (struct pollfd){.fd = wait == PV_PORT_KICK ? queue->kick_fd : -1, .events = POLLIN};
}

/* Nobody reads from a socket meanwhile, or writes to it: only that the peer is gone is of
 * interest, once. poll(2) tells of a hangup whether asked or not. */
static struct pollfd host(const struct pv_port *port)
{
	struct pollfd pollfd = {.fd = port->fd};

	if (port->in_wait == PV_PORT_HOST)
		pollfd.events |= POLLIN;
	else if (!port->hung_up)
		pollfd.events |= POLLRDHUP;
	if (port->out_wait == PV_PORT_HOST)
		pollfd.events |= POLLOUT;
	if (pollfd.events == 0)
		pollfd.fd = -1;
	return pollfd;
}

/* One client at a time, and the next when the driver knows of the last one's end. */
static struct pollfd listener(const struct pv_ports *ports, const struct pv_port *port)
{
	bool waits = port->fd < 0 && !port->owed && !ports->refused;

	return (struct pollfd){.fd = waits ? port->listen_fd : -1, .events = POLLIN};
}

static void look_at_host(struct pv_ports *ports, struct pv_port *port, short events)
{
	const short gone = POLLRDHUP | POLLHUP | POLLERR | POLLNVAL;

	if (events & (POLLOUT | gone) && port->out_wait == PV_PORT_HOST)
		port->out_wait = PV_PORT_MORE;
	if (events & (POLLIN | gone) && port->in_wait == PV_PORT_HOST)
		port->in_wait = PV_PORT_MORE;
	else if (events & gone && !port->hung_up)
		pv_port_peer_closed(ports, port);
}

static void take_kick(struct pv_ports *ports, const struct pollfd *pollfd, enum pv_port_wait *wait)
{
	eventfd_t value;

	if (!(pollfd->revents & POLLIN))
		return;
	(void)eventfd_read(pollfd->fd, &value);
	pv_port_count(ports, PV_PORT_KICKS, 1);
	*wait = PV_PORT_MORE;
}

/* Fill the array; nanoseconds to wait at most, or -1. */
static int64_t ask(const struct pv_ports *ports, struct pollfd *fds)
{
	int64_t timeout = ports->control_out_wait == PV_PORT_MORE ? 0
	                : ports->refused                          ? RETRY_NS
	                                                          : -1;

	fds[CONTROL_IN] = kick(&ports->control.in, ports->control_in_wait);
	fds[CONTROL_OUT] = kick(&ports->control.out, ports->control_out_wait);
	for (uint32_t i = 0; i < ports->count; i++) {
		const struct pv_port *port = &ports->port[i];
		struct pollfd *at = &fds[PORTS + i * PER_PORT];

		at[SOCKET] = host(port);
		at[LISTENER] = listener(ports, port);
		at[IN] = kick(&port->queues.in, port->in_wait);
		at[OUT] = kick(&port->queues.out, port->out_wait);
		if (port->in_wait == PV_PORT_MORE || port->out_wait == PV_PORT_MORE)
			timeout = 0;
		else if (port->in_wait == PV_PORT_NAP && timeout != 0)
			timeout = NAP_NS;
	}
	return timeout;
}

static void look(struct pv_ports *ports, const struct pollfd *fds)
{
	ports->refused = false;
	take_kick(ports, &fds[CONTROL_IN], &ports->control_in_wait);
	take_kick(ports, &fds[CONTROL_OUT], &ports->control_out_wait);
	for (uint32_t i = 0; i < ports->count; i++) {
		struct pv_port *port = &ports->port[i];
		const struct pollfd *at = &fds[PORTS + i * PER_PORT];

		if (port->in_wait == PV_PORT_NAP)
			port->in_wait = PV_PORT_MORE;
		take_kick(ports, &at[IN], &port->in_wait);
		take_kick(ports, &at[OUT], &port->out_wait);
		if (at[SOCKET].revents)
			look_at_host(ports, port, at[SOCKET].revents);
		if (at[LISTENER].revents)
			pv_port_accept(ports, port);
	}
}

/* A broken device waits for its end alone. */
static void wait(struct pv_ports *ports)
{
	struct pollfd fds[PORTS + PV_PORTS_MAX * PER_PORT];
	nfds_t count = ports->broken ? 1 : PORTS + ports->count * PER_PORT;
	int64_t timeout = ports->broken ? -1 : ask(ports, fds);
	struct timespec time = {.tv_sec = timeout / NS_PER_S, .tv_nsec = timeout % NS_PER_S};

	fds[WAKE] = (struct pollfd){.fd = ports->wake_fd, .events = POLLIN};
	if (ppoll(fds, count, timeout < 0 ? NULL : &time, NULL) >= 0 && !ports->broken)
		look(ports, fds);
}

void *pv_port_run(void *device)
{
	struct pv_ports *ports = device;
	eventfd_t value;

	pv_thread_is("ports", pv_virtio_irq_name(ports->irq));
	while (!atomic_load(&ports->stopping)) {
		if (!ports->broken)
			pv_port_serve(ports);
		wait(ports);
	}
	(void)eventfd_read(ports->wake_fd, &value);
	return NULL;
}
