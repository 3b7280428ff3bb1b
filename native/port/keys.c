/* What a user types on the terminal of a console, of which some keys are the monitor's. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "console/escape_internal.h"
#include "port/internal.h"
#include "virtio/iov_internal.h"

#define LINUX_BREAK 0x0f /* Ctrl-O: the next key is a SysRq command */

struct keys {
	uint8_t data[256];
	uint32_t count;
};

static void put(struct keys *keys, uint8_t byte)
{
	if (keys->count < sizeof(keys->data))
		keys->data[keys->count++] = byte;
}

static void take(struct pv_port *port, uint8_t byte, struct keys *keys)
{
	switch (pv_escape_next(&port->escape_held, byte)) {
	case PV_ESCAPE_PASS:
		put(keys, byte);
		break;
	case PV_ESCAPE_PREFIXED:
		put(keys, PV_ESCAPE_PREFIX);
		put(keys, byte);
		break;
	case PV_ESCAPE_LITERAL:
		put(keys, PV_ESCAPE_PREFIX);
		break;
	case PV_ESCAPE_BREAK:
		put(keys, LINUX_BREAK);
		break;
	case PV_ESCAPE_QUIT:
		if (port->quit_fd >= 0)
			(void)eventfd_write(port->quit_fd, 1);
		break;
	case PV_ESCAPE_HELP:
		/* As much of it as the terminal takes at once. */
		if (port->out.fd >= 0)
			(void)pv_stream_write(&port->out, (const uint8_t *)pv_escape_help,
			                      (uint32_t)strlen(pv_escape_help));
		break;
	case PV_ESCAPE_HOLD:
		break;
	}
}

int64_t pv_port_read_keys(struct pv_port *port, const struct pv_port_batch *batch)
{
	struct keys keys = {.count = 0};
	uint8_t typed[sizeof(keys.data) - 1];
	/* One that was held back may come with the first. */
	uint64_t room = batch->bytes > 1 ? batch->bytes - 1 : 1;
	int64_t count = pv_stream_read(&port->in, typed,
	                               room < sizeof(typed) ? (uint32_t)room : sizeof(typed));

	if (count <= 0)
		return count;
	for (int64_t i = 0; i < count; i++)
		take(port, typed[i], &keys);
	if (keys.count > batch->bytes)
		keys.count = (uint32_t)batch->bytes;
	pv_iov_scatter(batch->iov, batch->segments, 0, keys.data, keys.count);
	return keys.count > 0 ? (int64_t)keys.count : -EAGAIN;
}
