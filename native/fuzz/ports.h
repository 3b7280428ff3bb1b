/* Ports without their thread. */
#ifndef PV_FUZZ_PORTS_H
#define PV_FUZZ_PORTS_H

#include "port/internal.h"

/* Serve them as if poll(2) told that everything has moved. */
static inline void serve_ports(struct pv_ports *ports)
{
	for (uint32_t i = 0; i < ports->count; i++) {
		if (ports->port[i].in_wait != PV_PORT_IDLE)
			ports->port[i].in_wait = PV_PORT_MORE;
		ports->port[i].out_wait = PV_PORT_MORE;
	}
	ports->control_in_wait = ports->control_out_wait = PV_PORT_MORE;
	pv_port_serve(ports);
}

#endif
