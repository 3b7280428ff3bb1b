/* The pairs' queues in the hands of the host's kernel: /dev/vhost-net, one for each pair
 * (linux/vhost.h).
 *
 * It raises the device's line by itself, and so cannot touch InterruptStatus: see
 * pv_virtio_irq_lend. */
#include <errno.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "net/internal.h"
#include "vcpu/memory.h"
#include "virtio/irq.h"
#include "virtio/virtqueue_internal.h"

#define BIT(bit) (UINT64_C(1) << (bit))
/* Of the rings and the packets in them; the others are between the driver and the tap. */
#define FEATURES                                                                                   \
	(BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_EVENT_IDX) |                                  \
	 BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VIRTIO_NET_F_MRG_RXBUF))

static int control(int fd, unsigned long request, const void *argument)
{
	return ioctl(fd, request, argument) < 0 ? -errno : 0;
}

int pv_net_vhost_open(int vhost_fd)
{
	return control(vhost_fd, VHOST_SET_OWNER, NULL);
}

void pv_net_vhost_close(int vhost_fd)
{
	(void)control(vhost_fd, VHOST_RESET_OWNER, NULL);
}

static int set_features(int fd, uint64_t features)
{
	uint64_t wanted = features & FEATURES, offered = 0;
	int result = control(fd, VHOST_GET_FEATURES, &offered);

	if (result < 0)
		return result;
	return wanted & ~offered ? -EOPNOTSUPP : control(fd, VHOST_SET_FEATURES, &wanted);
}

static int set_memory(int fd, const struct pv_memory *memory)
{
	struct vhost_memory *table = calloc(1, sizeof(*table) + PV_MEMORY_REGIONS *
	                                                                sizeof(table->regions[0]));
	uint64_t address, size;
	void *host;
	int result;

	if (!table)
		return -ENOMEM;
	while (pv_memory_region(memory, table->nregions, &address, &size, &host) == 0)
		table->regions[table->nregions++] = (struct vhost_memory_region){
			.guest_phys_addr = address,
			.memory_size = size,
			.userspace_addr = (uintptr_t)host,
		};
	result = control(fd, VHOST_SET_MEM_TABLE, table);
	free(table);
	return result;
}

static int set_ring(const struct pv_net *net, int fd, uint32_t index,
                    const struct pv_queue *queue)
{
	struct pv_virtqueue *ring = queue->ring;
	struct vhost_vring_state num = {index, ring->size};
	struct vhost_vring_state base = {index, pv_virtqueue_rewind(ring)};
	struct vhost_vring_addr address = {
		.index = index,
		.desc_user_addr = (uintptr_t)ring->desc,
		.used_user_addr = (uintptr_t)ring->used,
		.avail_user_addr = (uintptr_t)ring->avail,
	};
	struct vhost_vring_file kick = {index, queue->kick_fd};
	struct vhost_vring_file call = {index, pv_virtio_irq_lend(net->irq)};
	struct vhost_vring_file error = {index, net->vhost_error_fd};
	int result = control(fd, VHOST_SET_VRING_NUM, &num);

	if (result == 0)
		result = control(fd, VHOST_SET_VRING_BASE, &base);
	if (result == 0)
		result = control(fd, VHOST_SET_VRING_ADDR, &address);
	if (result == 0)
		result = control(fd, VHOST_SET_VRING_KICK, &kick);
	if (result == 0)
		result = control(fd, VHOST_SET_VRING_CALL, &call);
	if (result == 0)
		result = control(fd, VHOST_SET_VRING_ERR, &error);
	return result;
}

/* Bind both rings to the tap; what is in them already counts as notified. */
static int bind_tap(const struct pv_net_worker *w, int fd)
{
	const struct pv_queue *queues[] = {&w->rx.queue, &w->tx.queue};
	int result = 0;

	for (uint32_t i = 0; i < 2 && result == 0; i++) {
		struct vhost_vring_file backend = {i, w->port->fd};

		result = control(fd, VHOST_NET_SET_BACKEND, &backend);
		(void)eventfd_write(queues[i]->kick_fd, 1);
	}
	return result;
}

static int start_pair(const struct pv_net *net, const struct pv_net_worker *w)
{
	int fd = net->vhost_fds[w->index];
	int result = set_features(fd, net->features);

	if (result == 0)
		result = set_memory(fd, net->memory);
	if (result == 0)
		result = set_ring(net, fd, 0, &w->rx.queue);
	if (result == 0)
		result = set_ring(net, fd, 1, &w->tx.queue);
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
		pv_net_vhost_stop(net);
	return result;
}

/* The threads, should they go on, do so where the kernel stands. */
static void stop_ring(int fd, uint32_t index, struct pv_virtqueue *ring)
{
	struct vhost_vring_file none = {index, VHOST_FILE_UNBIND};
	struct vhost_vring_state base = {index, 0};

	if (control(fd, VHOST_NET_SET_BACKEND, &none) == 0 &&
	    control(fd, VHOST_GET_VRING_BASE, &base) == 0)
		pv_virtqueue_seek(ring, (uint16_t)base.num);
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
	close(net->vhost_error_fd);
}
