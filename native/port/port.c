#include "port/port.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "port/internal.h"
#include "virtio/irq.h"

_Static_assert(PV_PORT_OWES_ALL < PV_PORT_OWED, "all of them");
_Static_assert(sizeof(struct pv_ports_stats) == PV_PORT_COUNTERS * sizeof(uint64_t), "same order");

static int add_port(struct pv_ports *ports, const struct pv_port_config *config)
{
	struct pv_port *port;
	size_t length = strlen(config->name);

	if (config->number >= PV_PORTS_MAX || length > PV_PORT_NAME_MAX)
		return -EINVAL;
	port = &ports->port[config->number];
	if (port->exists)
		return -EINVAL;
	port->exists = true;
	memcpy(port->name, config->name, length);
	return pv_port_open_host(ports, port, config);
}

static void init_port(struct pv_port *port)
{
	port->in.fd = port->out.fd = -1;
	port->listen_fd = port->size_fd = port->quit_fd = -1;
}

int pv_ports_new(const struct pv_port_config *configs, uint32_t count, struct pv_ports **out)
{
	struct pv_ports *ports = calloc(1, sizeof(*ports));
	int result = 0;

	*out = ports;
	if (!ports)
		return -ENOMEM;
	for (uint32_t i = 0; i < PV_PORTS_MAX; i++)
		init_port(&ports->port[i]);
	ports->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ports->wake_fd < 0)
		result = -errno;
	for (uint32_t i = 0; i < count && result == 0; i++)
		result = add_port(ports, &configs[i]);
	if (result < 0) {
		pv_ports_free(ports);
		*out = NULL;
	}
	return result;
}

void pv_ports_free(struct pv_ports *ports)
{
	if (!ports)
		return;
	for (uint32_t i = 0; i < PV_PORTS_MAX; i++)
		pv_port_close_host(&ports->port[i]);
	if (ports->wake_fd >= 0)
		close(ports->wake_fd);
	free(ports);
}

static void begin_port(struct pv_ports *ports, struct pv_port *port,
                       const struct pv_port_pair *pair)
{
	/* Without control messages it is the console, which is always open. */
	bool open = !ports->control.in.ring && port->flags & PV_PORT_CONSOLE;

	port->queues = *pair;
	port->out_wait = port->queues.out.ring ? PV_PORT_MORE : PV_PORT_IDLE;
	port->flows = port->impatient = false;
	port->blocked_at = 0;
	if (!ports->keeps) {
		port->ready = false;
		port->owed = 0;
		port->taken = 0;
		atomic_store(&port->open, open);
	}
	port->in_wait = atomic_load(&port->open) ? PV_PORT_MORE : PV_PORT_IDLE;
	pv_port_see_size(ports, port);
}

void pv_ports_begin(struct pv_ports *ports, const struct pv_ports_activation *activation)
{
	ports->count = activation->count;
	ports->control = activation->control;
	ports->irq = activation->irq;
	ports->control_in_wait = ports->control.in.ring ? PV_PORT_MORE : PV_PORT_IDLE;
	ports->control_out_wait = ports->control.out.ring ? PV_PORT_MORE : PV_PORT_IDLE;
	ports->notify = ports->refused = ports->broken = false;
	for (uint32_t i = 0; i < ports->count; i++)
		begin_port(ports, &ports->port[i], &activation->pairs[i]);
	ports->keeps = false;
}

int pv_ports_start(struct pv_ports *ports, const struct pv_ports_activation *activation)
{
	int result;

	if (ports->running)
		return -EBUSY;
	if (activation->count > PV_PORTS_MAX)
		return -EINVAL;
	pv_ports_begin(ports, activation);
	result = pv_thread_run(&ports->thread, pv_port_run, ports);
	ports->running = result == 0;
	return result;
}

static void forget(struct pv_ports *ports)
{
	ports->keeps = false;
	for (uint32_t i = 0; i < PV_PORTS_MAX; i++)
		atomic_store(&ports->port[i].open, false);
}

int pv_ports_stop(struct pv_ports *ports, uint64_t timeout_ns)
{
	if (ports->keeps)
		forget(ports);
	if (!ports->running)
		return 0;
	pv_thread_ask(&ports->thread);
	(void)eventfd_write(ports->wake_fd, 1);
	if (pv_thread_wait(&ports->thread, pv_deadline(timeout_ns)) < 0)
		return -ETIMEDOUT;
	ports->running = false;
	forget(ports);
	return 0;
}

int pv_ports_drain(struct pv_ports *ports, uint64_t timeout_ns)
{
	if (!ports->running)
		return 0;
	if (pv_thread_pause(&ports->thread, ports->wake_fd, timeout_ns) < 0)
		return -ETIMEDOUT;
	ports->running = false;
	ports->keeps = true;
	return 0;
}

void pv_ports_save(const struct pv_ports *ports, uint32_t number, struct pv_port_state *state)
{
	const struct pv_port *port = &ports->port[number];
	uint32_t size = atomic_load(&port->size);

	*state = (struct pv_port_state){
		.open = atomic_load(&port->open),
		.ready = port->ready,
		.there = atomic_load(&port->there),
		.columns = (uint16_t)size,
		.rows = (uint16_t)(size >> 16),
		.owed = port->owed,
		.taken = port->taken,
	};
}

int pv_ports_restore(struct pv_ports *ports, uint32_t number, const struct pv_port_state *state)
{
	uint32_t size = state->columns | (uint32_t)state->rows << 16;
	struct pv_port *port;

	if (number >= PV_PORTS_MAX || !ports->port[number].exists || ports->running)
		return -EINVAL;
	port = &ports->port[number];
	atomic_store(&port->open, state->open != 0);
	port->ready = state->ready != 0;
	port->owed = port->ready || state->owed & PV_PORT_OWES_ADD
	                     ? state->owed & PV_PORT_OWES_ALL
	                     : 0;
	port->taken = state->taken;
	if (port->ready && (state->there != 0) != atomic_load(&port->there))
		port->owed |= PV_PORT_OWES_OPEN;
	if (port->ready && atomic_load(&port->size) && size != atomic_load(&port->size))
		port->owed |= PV_PORT_OWES_SIZE;
	ports->keeps = true;
	return 0;
}

void pv_ports_look(struct pv_ports *ports)
{
	atomic_store(&ports->look, true);
	(void)eventfd_write(ports->wake_fd, 1);
}

void pv_ports_size(const struct pv_ports *ports, uint16_t *columns, uint16_t *rows)
{
	uint32_t size = atomic_load(&ports->port[0].size);

	*columns = (uint16_t)size;
	*rows = (uint16_t)(size >> 16);
}

int pv_ports_open(const struct pv_ports *ports, uint32_t number)
{
	const struct pv_port *port = &ports->port[number];

	return (atomic_load(&port->open) ? PV_PORT_GUEST : 0) |
	       (atomic_load(&port->there) ? PV_PORT_HOST_END : 0);
}

void pv_ports_stats(const struct pv_ports *ports, struct pv_ports_stats *stats)
{
	uint64_t values[PV_PORT_COUNTERS];

	for (uint32_t i = 0; i < PV_PORT_COUNTERS; i++)
		values[i] = atomic_load_explicit(&ports->counters[i], memory_order_relaxed);
	memcpy(stats, values, sizeof(*stats));
}
