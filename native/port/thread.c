/* The thread of a console device. */
#include <poll.h>
#include <sys/eventfd.h>

#include "port/internal.h"
#include "sandbox/filter.h"
#include "thread_internal.h"
#include "virtio/irq.h"

#define NS_PER_S 1000000000
#define RETRY_NS NS_PER_S    /* until a client that could not be accepted is tried again */
#define PATIENCE_NS NS_PER_S /* with a console's end that takes nothing */
#define NAP_NS 100000        /* PV_PORT_NAP */

/* Places in the array for poll(2): three, and five for each port. */
enum { WAKE, CONTROL_IN, CONTROL_OUT, PORTS };
enum { HOST_IN, HOST_OUT, LISTENER, IN, OUT, PER_PORT };

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

/* Nobody reads from it meanwhile, or writes to it: only that the peer is gone is of interest, once.
 * poll(2) tells of a hangup whether asked or not. */
static struct pollfd host_in(const struct pv_port *port)
{
	struct pollfd pollfd = {.fd = port->in.fd};

	if (port->in_wait == PV_PORT_HOST)
		pollfd.events |= POLLIN;
	else if (port->socket && !port->hung_up)
		pollfd.events |= POLLRDHUP;
	if (port->socket && port->out_wait == PV_PORT_HOST)
		pollfd.events |= POLLOUT;
	if (pollfd.events == 0 && !(port->in.pty_master && atomic_load(&port->there)))
		pollfd.fd = -1;
	return pollfd;
}

static struct pollfd host_out(const struct pv_port *port)
{
	bool waits = !port->socket && port->out_wait == PV_PORT_HOST;

	return (struct pollfd){.fd = waits ? port->out.fd : -1, .events = POLLOUT};
}

/* One client at a time, and the next when the driver knows of the last one's end. */
static struct pollfd listener(const struct pv_ports *ports, const struct pv_port *port)
{
	bool waits = !atomic_load(&port->there) && !port->owed && !ports->refused;

	return (struct pollfd){.fd = waits ? port->listen_fd : -1, .events = POLLIN};
}

static void look_at_socket(struct pv_ports *ports, struct pv_port *port, short events)
{
	const short gone = POLLRDHUP | POLLHUP | POLLERR | POLLNVAL;

	if (events & (POLLOUT | gone) && port->out_wait == PV_PORT_HOST)
		port->out_wait = PV_PORT_MORE;
	if (events & (POLLIN | gone) && port->in_wait == PV_PORT_HOST)
		port->in_wait = PV_PORT_MORE;
	else if (events & gone && !port->hung_up)
		pv_port_peer_closed(ports, port);
}

static void look_at_host(struct pv_ports *ports, struct pv_port *port, const struct pollfd *at)
{
	if (port->socket && at[HOST_IN].revents)
		look_at_socket(ports, port, at[HOST_IN].revents);
	else if (at[HOST_IN].revents && port->in_wait == PV_PORT_HOST)
		port->in_wait = PV_PORT_MORE;
	else if (at[HOST_IN].revents & POLLHUP)
		pv_port_leave(ports, port);
	if (at[HOST_OUT].revents && port->out_wait == PV_PORT_HOST)
		port->out_wait = PV_PORT_MORE;
}

/* When there is something to do though nothing happens; 0: never. */
static uint64_t due(const struct pv_port *port)
{
	uint64_t patience = 0;

	if (port->out_wait == PV_PORT_HOST && port->flags & PV_PORT_CONSOLE)
		patience = port->blocked_at + PATIENCE_NS;
	return port->look_at == 0 || (patience && patience < port->look_at) ? patience
	                                                                    : port->look_at;
}

static void look_at_clock(struct pv_ports *ports, struct pv_port *port)
{
	uint64_t at = due(port), now;

	if (at == 0 || (now = pv_now_ns()) < at)
		return;
	if (port->look_at && port->look_at <= now) {
		pv_port_look(ports, port);
		return;
	}
	port->impatient = true;
	port->out_wait = PV_PORT_MORE;
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

static int64_t shorter(int64_t timeout, int64_t other)
{
	return timeout < 0 || other < timeout ? other : timeout;
}

/* Nanoseconds until a port has something to do though nothing happens, or -1. */
static int64_t time_left(const struct pv_port *port)
{
	uint64_t at = due(port), now;

	if (port->in_wait == PV_PORT_MORE || port->out_wait == PV_PORT_MORE)
		return 0;
	if (port->in_wait == PV_PORT_NAP)
		return NAP_NS;
	if (at == 0)
		return -1;
	now = pv_now_ns();
	return at > now ? (int64_t)(at - now) : 0;
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
		int64_t left = time_left(port);

		at[HOST_IN] = host_in(port);
		at[HOST_OUT] = host_out(port);
		at[LISTENER] = listener(ports, port);
		at[IN] = kick(&port->queues.in, port->in_wait);
		at[OUT] = kick(&port->queues.out, port->out_wait);
		if (left >= 0)
			timeout = shorter(timeout, left);
	}
	return timeout;
}

static void look_at_sizes(struct pv_ports *ports)
{
	eventfd_t value;

	(void)eventfd_read(ports->wake_fd, &value);
	if (!atomic_exchange(&ports->look, false))
		return;
	for (uint32_t i = 0; i < ports->count; i++)
		pv_port_see_size(ports, &ports->port[i]);
}

static void look(struct pv_ports *ports, const struct pollfd *fds)
{
	ports->refused = false;
	if (fds[WAKE].revents)
		look_at_sizes(ports);
	take_kick(ports, &fds[CONTROL_IN], &ports->control_in_wait);
	take_kick(ports, &fds[CONTROL_OUT], &ports->control_out_wait);
	for (uint32_t i = 0; i < ports->count; i++) {
		struct pv_port *port = &ports->port[i];
		const struct pollfd *at = &fds[PORTS + i * PER_PORT];

		if (port->in_wait == PV_PORT_NAP)
			port->in_wait = PV_PORT_MORE;
		take_kick(ports, &at[IN], &port->in_wait);
		take_kick(ports, &at[OUT], &port->out_wait);
		look_at_host(ports, port, at);
		look_at_clock(ports, port);
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

	pv_thread_is(PV_SANDBOX_PORTS, "ports", pv_virtio_irq_name(ports->irq));
	while (!pv_thread_is_to_end(&ports->thread)) {
		if (!ports->broken)
			pv_port_serve(ports);
		wait(ports);
	}
	(void)eventfd_read(ports->wake_fd, &value);
	return NULL;
}
