/* What the parts of the socket device say of it. */
#include "virtio/irq.h"
#include "vsock/internal.h"

void pv_vsock_count(struct pv_vsock *vsock, enum pv_vsock_counter counter, uint64_t more)
{
	uint64_t before = atomic_load_explicit(&vsock->counters[counter], memory_order_relaxed);

	atomic_store_explicit(&vsock->counters[counter], before + more, memory_order_relaxed);
}

void pv_vsock_break(struct pv_vsock *vsock, const char *why)
{
	vsock->broken = true;
	pv_virtio_irq_broken(vsock->irq, why);
}

bool pv_vsock_is_lost(struct pv_vsock *vsock, uint32_t op)
{
	const struct pv_fault_subject subject = {.op = op};

	return (pv_faults_armed(vsock->faults) & op) != 0 &&
	       pv_faults_judge(vsock->faults, &subject).dropped_by != 0;
}

void pv_vsock_publish(struct pv_vsock *vsock, struct pv_virtqueue *ring)
{
	pv_virtqueue_publish(ring);
	vsock->notify |= pv_virtqueue_needs_notify(ring) != 0;
}
