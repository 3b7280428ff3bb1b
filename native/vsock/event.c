/* What drivers are told by the event queue (virtio 1.2, 5.10.6.7); of either kind of device. */
#include <errno.h>
#include <linux/virtio_vsock.h>
#include <stdlib.h>

#include "virtio/iov_internal.h"
#include "virtio/irq.h"
#include "vsock/vsock.h"

static const char *fault(const struct pv_chain *chain)
{
	if (chain->readable > 0 || chain->writable_bytes < sizeof(struct virtio_vsock_event))
		return "a buffer that an event does not fit";
	return NULL;
}

static int tell(struct pv_virtqueue *ring, struct pv_chain *chain, struct pv_virtio_irq *irq)
{
	const struct virtio_vsock_event event = {.id = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET};
	int result = pv_virtqueue_pop(ring, chain);
	const char *why = result < 0 ? pv_virtqueue_error(ring) : result > 0 ? fault(chain) : NULL;

	if (why) {
		pv_virtio_irq_broken(irq, why);
		return -EPROTO;
	}
	if (result == 0)
		return 0;
	pv_iov_scatter(chain->iov, chain->writable, 0, &event, sizeof(event));
	pv_virtqueue_push(ring, chain->head, sizeof(event));
	pv_virtqueue_publish(ring);
	if (pv_virtqueue_needs_notify(ring))
		pv_virtio_irq_used(irq);
	return 1;
}

int pv_vsock_tell_reset(const struct pv_queue *event, struct pv_virtio_irq *irq)
{
	struct pv_chain *chain = malloc(sizeof(*chain));
	int result;

	if (!chain)
		return -ENOMEM;
	result = tell(event->ring, chain, irq);
	free(chain);
	return result;
}
