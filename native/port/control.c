/* Control messages (virtio 1.2, 5.3.6.2): which ports there are, how they are called, which are
 * consoles and of what size, and which side has them open. */
#include <stdio.h>
#include <string.h>

#include "port/internal.h"
#include "virtio/iov_internal.h"

#define MESSAGES 16 /* of the driver, in a row */

/* struct virtio_console_control; little-endian, as its host. */
struct message {
	uint32_t number; /* of the port */
	uint16_t event;
	uint16_t value;
};

enum {
	DEVICE_READY = 0,
	PORT_ADD = 1,
	PORT_READY = 3,
	CONSOLE_PORT = 4,
	RESIZE = 5,
	PORT_OPEN = 6,
	PORT_NAME = 7,
};

/* The port that a message is about; NULL: there is none, and the device is broken. */
static struct pv_port *find(struct pv_ports *ports, uint32_t number)
{
	char why[64];

	if (number < ports->count && ports->port[number].exists)
		return &ports->port[number];
	snprintf(why, sizeof(why), "a control message about port %u, which there is not", number);
	pv_port_break(ports, why);
	return NULL;
}

static void on_device_ready(struct pv_ports *ports, bool ready)
{
	for (uint32_t i = 0; i < ports->count; i++)
		if (ports->port[i].exists)
			ports->port[i].owed = ready ? PV_PORT_OWES_ADD : 0;
}

static void on_port_ready(struct pv_port *port, bool ready)
{
	port->ready = ready;
	port->owed = 0;
	if (!ready)
		return;
	if (port->flags & PV_PORT_CONSOLE)
		port->owed |= PV_PORT_OWES_CONSOLE;
	if (port->name[0])
		port->owed |= PV_PORT_OWES_NAME;
	if (atomic_load(&port->size))
		port->owed |= PV_PORT_OWES_SIZE;
	if (atomic_load(&port->there))
		port->owed |= PV_PORT_OWES_OPEN;
}

static void on_port_open(struct pv_port *port, bool open)
{
	atomic_store(&port->open, open);
	port->in_wait = PV_PORT_MORE;
}

/* Events that this device does not know ask for nothing. */
static void handle(struct pv_ports *ports, const struct message *message)
{
	struct pv_port *port;

	if (message->event == DEVICE_READY) {
		on_device_ready(ports, message->value != 0);
	} else if (message->event == PORT_READY || message->event == PORT_OPEN) {
		port = find(ports, message->number);
		if (port && message->event == PORT_READY)
			on_port_ready(port, message->value != 0);
		else if (port)
			on_port_open(port, message->value != 0);
	}
}

static bool take_message(struct pv_ports *ports)
{
	struct pv_virtqueue *ring = ports->control.out.ring;
	const struct pv_chain *chain = &ports->chain;
	struct message message;
	int result = pv_virtqueue_pop(ring, &ports->chain);

	if (result == 0) {
		ports->control_out_wait = PV_PORT_KICK;
		return pv_virtqueue_enable_kicks(ring) != 0;
	}
	if (result < 0 || chain->writable > 0 || chain->readable_bytes != sizeof(message)) {
		pv_port_break(ports, result < 0 ? pv_virtqueue_error(ring)
		                                : "a control message of the wrong size or direction");
		return false;
	}
	pv_iov_gather(chain->iov, chain->readable, 0, &message, sizeof(message));
	pv_virtqueue_push(ring, chain->head, 0);
	pv_port_count(ports, PV_PORT_MESSAGES, 1);
	handle(ports, &message);
	return !ports->broken;
}

void pv_port_take_messages(struct pv_ports *ports)
{
	struct pv_virtqueue *ring = ports->control.out.ring;

	pv_virtqueue_disable_kicks(ring);
	for (uint32_t i = 0; i < MESSAGES && take_message(ports); i++)
		ports->control_out_wait = PV_PORT_MORE;
	pv_port_publish(ports, ring);
}

/* A message and what goes behind it: a name, or struct virtio_console_resize. */
struct sent {
	struct message message;
	struct {
		uint16_t columns;
		uint16_t rows;
	} size;
	const void *more;
	size_t more_size;
};

/* Make the first of the messages that a port owes. */
static void compose(const struct pv_ports *ports, const struct pv_port *port, struct sent *sent)
{
	uint32_t size = atomic_load(&port->size);

	*sent = (struct sent){.message.number = (uint32_t)(port - ports->port), .message.value = 1};
	if (port->owed & PV_PORT_OWES_ADD) {
		sent->message.event = PORT_ADD;
	} else if (port->owed & PV_PORT_OWES_CONSOLE) {
		sent->message.event = CONSOLE_PORT;
	} else if (port->owed & PV_PORT_OWES_NAME) {
		sent->message.event = PORT_NAME;
		sent->more = port->name;
		sent->more_size = strlen(port->name);
	} else if (port->owed & PV_PORT_OWES_SIZE) {
		sent->message.event = RESIZE;
		sent->size.columns = (uint16_t)size;
		sent->size.rows = (uint16_t)(size >> 16);
		sent->more = &sent->size;
		sent->more_size = sizeof(sent->size);
	} else {
		sent->message.event = PORT_OPEN;
		sent->message.value = atomic_load(&port->there);
	}
}

/* False: the driver has no buffer for it, or the device is broken. */
static bool send_message(struct pv_ports *ports, struct pv_port *port)
{
	struct pv_virtqueue *ring = ports->control.in.ring;
	const struct pv_chain *chain = &ports->chain;
	int result = pv_virtqueue_pop(ring, &ports->chain);
	struct sent sent;
	uint32_t size;

	if (result == 0)
		return false;
	compose(ports, port, &sent);
	size = (uint32_t)(sizeof(sent.message) + sent.more_size);
	if (result < 0 || chain->readable > 0 || chain->writable_bytes < size) {
		pv_port_break(ports, result < 0 ? pv_virtqueue_error(ring)
		                                : "a buffer that a control message does not fit");
		return false;
	}
	pv_iov_scatter(chain->iov, chain->writable, 0, &sent.message, sizeof(sent.message));
	pv_iov_scatter(chain->iov, chain->writable, sizeof(sent.message), sent.more, sent.more_size);
	pv_virtqueue_push(ring, chain->head, size);
	port->owed &= port->owed - 1;
	return true;
}

static bool send_owed(struct pv_ports *ports)
{
	for (uint32_t i = 0; i < ports->count; i++)
		while (ports->port[i].owed)
			if (!send_message(ports, &ports->port[i]))
				return false;
	return true;
}

void pv_port_send_messages(struct pv_ports *ports)
{
	struct pv_virtqueue *ring = ports->control.in.ring;

	pv_virtqueue_disable_kicks(ring);
	while (!send_owed(ports) && !ports->broken) {
		ports->control_in_wait = PV_PORT_KICK;
		if (!pv_virtqueue_enable_kicks(ring))
			break;
		ports->control_in_wait = PV_PORT_MORE;
	}
	pv_port_publish(ports, ring);
}
