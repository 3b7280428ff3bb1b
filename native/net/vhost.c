/* The pairs' queues in the hands of the host's kernel: /dev/vhost-net, one for each pair
 * (linux/vhost.h). */
#include <errno.h>
#include <linux/vhost.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "net/internal.h"
#include "virtio/vhost_internal.h"

/* Of the rings and the packets in them; the others are between the driver and the tap. */
#define FEATURES (PV_VHOST_RING_FEATURES | UINT64_C(1) << VIRTIO_NET_F_MRG_RXBUF)

int pv_net_vhost_open(int vhost_fd)
{
	return pv_vhost_control(vhost_fd, VHOST_SET_OWNER, NULL);
}

void pv_net_vhost_close(int vhost_fd)
{
	(void)pv_vhost_control(vhost_fd, VHOST_RESET_OWNER, NULL);
}

/* Bind both rings to the tap; what is in them already counts as notified. */
static int bind_tap(const struct pv_net_worker *w, int fd)
{
	const struct pv_queue *queues[] = {&w->rx.queue, &w->tx.queue};
	int result = 0;

	for (uint32_t i = 0; i < 2 && result == 0; i++) {
		struct vhost_vring_file backend = {i, w->port->fd};

		result = pv_vhost_control(fd, VHOST_NET_SET_BACKEND, &backend);
		(void)eventfd_write(queues[i]->kick_fd, 1);
	}
	return result;
}

static int start_pair(const struct pv_net *net, const struct pv_net_worker *w)
{
	int fd = net->vhost_fds[w->index];
	int result = pv_vhost_set_up(fd, net->features & FEATURES, net->memory);

	if (result == 0)
		result = pv_vhost_set_ring(fd, 0, &w->rx.queue, net->irq, net->vhost_error_fd);
	if (result == 0)
		result = pv_vhost_set_ring(fd, 1, &w->tx.queue, net->irq, net->vhost_error_fd);
	return result == 0 ? bind_tap(w, fd) : result;
}

int pv_net_vhost_start(struct pv_net *net)
{
	int result = 0;

	net->vhost_error_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (net->vhost_error_fd < 0)
		return -errno;
	net->vhost = true;
	for (uint32_t i = 0; i < net->count && result == 0; i++)
		result = start_pair(net, net->workers[i]);
	if (result < 0)
		pv_net_vhost_end(net);
	return result;
}

/* The threads, should they go on, do so where the kernel stands. */
static void stop_ring(int fd, uint32_t index, struct pv_virtqueue *ring)
{
	struct vhost_vring_file none = {index, VHOST_FILE_UNBIND};

	if (pv_vhost_control(fd, VHOST_NET_SET_BACKEND, &none) == 0)
		pv_vhost_take_ring(fd, index, ring);
}

void pv_net_vhost_stop(struct pv_net *net)
{
	if (!net->vhost)
		return;
	net->vhost = false;
	for (uint32_t i = 0; i < net->count; i++) {
		stop_ring(net->vhost_fds[i], 0, net->workers[i]->rx.queue.ring);
		stop_ring(net->vhost_fds[i], 1, net->workers[i]->tx.queue.ring);
	}
}

void pv_net_vhost_end(struct pv_net *net)
{
	pv_net_vhost_stop(net);
	if (net->vhost_error_fd >= 0)
		close(net->vhost_error_fd);
	net->vhost_error_fd = -1;
}
