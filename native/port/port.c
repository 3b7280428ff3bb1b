#include "port/port.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "port/internal.h"
#include "virtio/irq.h"

_Static_assert(sizeof(struct pv_ports_stats) == PV_PORT_COUNTERS * sizeof(uint64_t), "same order");

static int add_port(struct pv_ports *ports, const struct pv_port_config *config)
{
	struct pv_port *port;
	size_t length = strlen(config->name);

	if (config->number >= PV_PORTS_MAX || length > PV_PORT_NAME_MAX)
		return -EINVAL;
	port = &ports->port[config->number];
	if (port->exists || (config->fd >= 0) == (config->listen_fd >= 0))
		return -EINVAL;
	port->exists = true;
	port->fd = config->fd;
	port->listen_fd = config->listen_fd;
	memcpy(port->name, config->name, length);
	if (port->fd >= 0)
		pv_port_count(ports, PV_PORT_OPENED, 1);
	return 0;
}

int pv_ports_new(const struct pv_port_config *configs, uint32_t count, struct pv_ports **out)
{
	struct pv_ports *ports = calloc(1, sizeof(*ports));
	int result = 0;

	*out = ports;
	if (!ports)
		return -ENOMEM;
	for (uint32_t i = 0; i < PV_PORTS_MAX; i++)
		ports->port[i].fd = ports->port[i].listen_fd = -1;
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
		if (ports->port[i].accepted)
			close(ports->port[i].fd);
	if (ports->wake_fd >= 0)
		close(ports->wake_fd);
	free(ports);
}

void pv_ports_begin(struct pv_ports *ports, const struct pv_ports_activation *activation)
{
	ports->count = activation->count;
	ports->control = activation->control;
	ports->irq = activation->irq;
	ports->control_in_wait = ports->control.in.ring ? PV_PORT_MORE : PV_PORT_IDLE;
	ports->control_out_wait = ports->control.out.ring ? PV_PORT_MORE : PV_PORT_IDLE;
	ports->notify = ports->refused = ports->broken = false;
	for (uint32_t i = 0; i < ports->count; i++) {
		struct pv_port *port = &ports->port[i];

		port->queues = activation->pairs[i];
		port->in_wait = PV_PORT_IDLE;
		port->out_wait = port->queues.out.ring ? PV_PORT_MORE : PV_PORT_IDLE;
		port->ready = port->open = port->flows = false;
		port->owed = 0;
		port->taken = 0;
	}
}

int pv_ports_start(struct pv_ports *ports, const struct pv_ports_activation *activation)
{
	int result;

	if (ports->running)
		return -EBUSY;
	if (activation->count > PV_PORTS_MAX)
		return -EINVAL;
	pv_ports_begin(ports, activation);
	atomic_store(&ports->stopping, false);
	result = pv_thread_run(&ports->thread, pv_port_run, ports);
	ports->running = result == 0;
	return result;
}

int pv_ports_stop(struct pv_ports *ports, uint64_t timeout_ns)
{
	if (!ports->running)
		return 0;
	atomic_store(&ports->stopping, true);
	(void)eventfd_write(ports->wake_fd, 1);
	if (pv_thread_wait(&ports->thread, pv_deadline(timeout_ns)) < 0)
		return -ETIMEDOUT;
	ports->running = false;
	return 0;
}

void pv_ports_stats(const struct pv_ports *ports, struct pv_ports_stats *stats)
{
	uint64_t values[PV_PORT_COUNTERS];

	for (uint32_t i = 0; i < PV_PORT_COUNTERS; i++)
		values[i] = atomic_load_explicit(&ports->counters[i], memory_order_relaxed);
	memcpy(stats, values, sizeof(*stats));
}
