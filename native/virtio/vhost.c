#include <errno.h>
#include <linux/vhost.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "vcpu/memory.h"
#include "virtio/irq.h"
#include "virtio/vhost_internal.h"
#include "virtio/virtqueue_internal.h"

int pv_vhost_control(int fd, unsigned long request, const void *argument)
{
	return ioctl(fd, request, argument) < 0 ? -errno : 0;
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
	result = pv_vhost_control(fd, VHOST_SET_MEM_TABLE, table);
	free(table);
	return result;
}

int pv_vhost_set_up(int fd, uint64_t features, const struct pv_memory *memory)
{
	uint64_t offered = 0;
	int result = pv_vhost_control(fd, VHOST_GET_FEATURES, &offered);

	if (result == 0 && features & ~offered)
		return -EOPNOTSUPP;
	if (result == 0)
		result = pv_vhost_control(fd, VHOST_SET_FEATURES, &features);
	return result == 0 ? set_memory(fd, memory) : result;
}

int pv_vhost_set_ring(int fd, uint32_t index, const struct pv_queue *queue,
                      struct pv_virtio_irq *irq, int error_fd)
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
	struct vhost_vring_file call = {index, pv_virtio_irq_lend(irq)};
	struct vhost_vring_file error = {index, error_fd};
	int result = pv_vhost_control(fd, VHOST_SET_VRING_NUM, &num);

	if (result == 0)
		result = pv_vhost_control(fd, VHOST_SET_VRING_BASE, &base);
	if (result == 0)
		result = pv_vhost_control(fd, VHOST_SET_VRING_ADDR, &address);
	if (result == 0)
		result = pv_vhost_control(fd, VHOST_SET_VRING_KICK, &kick);
	if (result == 0)
		result = pv_vhost_control(fd, VHOST_SET_VRING_CALL, &call);
	if (result == 0)
		result = pv_vhost_control(fd, VHOST_SET_VRING_ERR, &error);
	return result;
}

void pv_vhost_take_ring(int fd, uint32_t index, struct pv_virtqueue *ring)
{
	struct vhost_vring_state base = {index, 0};

	if (pv_vhost_control(fd, VHOST_GET_VRING_BASE, &base) == 0)
		pv_virtqueue_seek(ring, (uint16_t)base.num);
}
