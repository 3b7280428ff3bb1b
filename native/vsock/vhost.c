#include "vsock/vhost.h"

#include <errno.h>
#include <linux/vhost.h>
#include <linux/virtio_vsock.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "sandbox/filter.h"
#include "thread_internal.h"
#include "virtio/irq.h"
#include "virtio/vhost_internal.h"

#define FEATURES (PV_VHOST_RING_FEATURES | UINT64_C(1) << VIRTIO_VSOCK_F_SEQPACKET)

struct pv_vhost_vsock {
	int fd;
	int wake_fd;

	/* From start to stop. */
	bool running;
	struct pv_thread thread;
	int error_fd;
	struct pv_queue queues[2];
	struct pv_virtio_irq *irq;
};

int pv_vhost_vsock_new(int fd, uint64_t guest_cid, struct pv_vhost_vsock **out)
{
	struct pv_vhost_vsock *vsock = calloc(1, sizeof(*vsock));
	int result = vsock ? 0 : -ENOMEM;

	*out = NULL;
	if (result == 0)
		result = pv_vhost_control(fd, VHOST_SET_OWNER, NULL);
	if (result == 0)
		result = pv_vhost_control(fd, VHOST_VSOCK_SET_GUEST_CID, &guest_cid);
	if (result < 0) {
		free(vsock);
		return result;
	}
	vsock->fd = fd;
	vsock->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vsock->wake_fd < 0) {
		result = -errno;
		free(vsock);
		return result;
	}
	*out = vsock;
	return 0;
}

void pv_vhost_vsock_free(struct pv_vhost_vsock *vsock)
{
	if (!vsock)
		return;
	close(vsock->wake_fd);
	free(vsock);
}

/* Wait for the end, or for the kernel to find a broken ring. */
static void *run(void *device)
{
	struct pv_vhost_vsock *vsock = device;
	struct pollfd fds[] = {
		{.fd = vsock->wake_fd, .events = POLLIN},
		{.fd = vsock->error_fd, .events = POLLIN},
	};
	eventfd_t value;

	pv_thread_is(PV_SANDBOX_VACANT, "vsock", pv_virtio_irq_name(vsock->irq));
	while (!pv_thread_is_to_end(&vsock->thread)) {
		if (ppoll(fds, 2, NULL, NULL) <= 0 || !(fds[1].revents & POLLIN))
			continue;
		fds[1].fd = -1;
		pv_virtio_irq_broken(vsock->irq,
		                     "vhost-vsock found a ring whose rules are broken");
	}
	(void)eventfd_read(vsock->wake_fd, &value);
	return NULL;
}

static void take_back(struct pv_vhost_vsock *vsock)
{
	int off = 0;

	(void)pv_vhost_control(vsock->fd, VHOST_VSOCK_SET_RUNNING, &off);
	for (uint32_t i = 0; i < 2; i++)
		pv_vhost_take_ring(vsock->fd, i, vsock->queues[i].ring);
	close(vsock->error_fd);
}

/* What is in the rings already counts as notified. */
static int lend(struct pv_vhost_vsock *vsock, const struct pv_vhost_vsock_activation *activation)
{
	int on = 1;
	int result =
		pv_vhost_set_up(vsock->fd, activation->features & FEATURES, activation->memory);

	for (uint32_t i = 0; i < 2 && result == 0; i++)
		result = pv_vhost_set_ring(vsock->fd, i, &vsock->queues[i], vsock->irq,
		                           vsock->error_fd);
	if (result == 0)
		result = pv_vhost_control(vsock->fd, VHOST_VSOCK_SET_RUNNING, &on);
	for (uint32_t i = 0; i < 2 && result == 0; i++)
		(void)eventfd_write(vsock->queues[i].kick_fd, 1);
	return result;
}

int pv_vhost_vsock_start(struct pv_vhost_vsock *vsock,
                         const struct pv_vhost_vsock_activation *activation)
{
	int result;

	if (vsock->running)
		return -EBUSY;
	if (!activation->rx.ring || !activation->tx.ring)
		return -EINVAL;
	vsock->queues[0] = activation->rx;
	vsock->queues[1] = activation->tx;
	vsock->irq = activation->irq;
	vsock->error_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vsock->error_fd < 0)
		return -errno;
	result = lend(vsock, activation);
	if (result == 0)
		result = pv_thread_run(&vsock->thread, run, vsock);
	vsock->running = result == 0;
	if (result < 0)
		take_back(vsock);
	return result;
}

int pv_vhost_vsock_stop(struct pv_vhost_vsock *vsock, uint64_t timeout_ns)
{
	if (!vsock->running)
		return 0;
	pv_thread_ask(&vsock->thread);
	(void)eventfd_write(vsock->wake_fd, 1);
	if (pv_thread_wait(&vsock->thread, pv_deadline(timeout_ns)) < 0)
		return -ETIMEDOUT;
	vsock->running = false;
	take_back(vsock);
	return 0;
}

int pv_vhost_vsock_drain(struct pv_vhost_vsock *vsock, uint64_t timeout_ns)
{
	if (!vsock->running)
		return 0;
	if (pv_thread_pause(&vsock->thread, vsock->wake_fd, timeout_ns) < 0)
		return -ETIMEDOUT;
	vsock->running = false;
	take_back(vsock);
	return 0;
}
