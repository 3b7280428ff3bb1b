/* What the network device's threads say of themselves and of the device. */
#include <errno.h>
#include <sys/eventfd.h>

#include "net/internal.h"
#include "virtio/irq.h"

void pv_net_count(struct pv_net_worker *w, enum pv_net_counter counter, uint64_t more)
{
	uint64_t before = atomic_load_explicit(&w->counters[counter], memory_order_relaxed);

	atomic_store_explicit(&w->counters[counter], before + more, memory_order_relaxed);
}

bool pv_net_is_lost(struct pv_net_worker *w, uint32_t op)
{
	const struct pv_fault_subject subject = {.op = op};

	return (w->armed & op) != 0 && pv_faults_judge(w->net->faults, &subject).dropped_by != 0;
}

void pv_net_lose(struct pv_net_worker *w)
{
	w->lost = true;
	w->rx.wait = PV_WAIT_GONE;
	if (w->tx.wait == PV_WAIT_PORT)
		w->tx.wait = PV_WAIT_NONE;
	if (atomic_exchange(&w->net->lost, true))
		return;
	atomic_store(&w->net->news, true);
	pv_virtio_irq_news(w->net->irq);
}

void pv_net_break(struct pv_net *net, const char *why)
{
	if (!atomic_exchange(&net->broken, true))
		pv_virtio_irq_broken(net->irq, why);
}

void pv_net_wake(struct pv_net *net)
{
	for (uint32_t i = 0; i < net->count; i++)
		(void)eventfd_write(net->workers[i]->wake_fd, 1);
}

int pv_net_use_pairs(struct pv_net *net, uint32_t count)
{
	int result;

	if (count == 0 || count > net->count)
		return -EINVAL;
	result = pv_net_tap_spread(net->ports, net->port_count, count);
	if (result < 0)
		return result;
	atomic_store(&net->active, count);
	pv_net_wake(net);
	return 0;
}
