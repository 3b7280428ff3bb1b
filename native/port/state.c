/* What the parts of the console device say of it. */
#include "port/internal.h"
#include "virtio/irq.h"

void pv_port_count(struct pv_ports *ports, enum pv_port_counter counter, uint64_t more)
{
	atomic_fetch_add_explicit(&ports->counters[counter], more, memory_order_relaxed);
}

void pv_port_break(struct pv_ports *ports, const char *why)
{
	ports->broken = true;
	pv_virtio_irq_broken(ports->irq, why);
}
