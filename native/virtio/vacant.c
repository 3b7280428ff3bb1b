#include "virtio/vacant.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "thread_internal.h"
#include "virtio/irq.h"
#include "virtio/virtqueue.h"

struct pv_vacant {
	struct pv_virtio_irq *irq;
	pthread_t thread;
	bool broken;
	uint32_t count;
	struct pv_queue queues[PV_VACANT_QUEUES];
	struct pollfd fds[PV_VACANT_QUEUES + 1]; /* the kicks, then the end */
	struct pv_chain chain;
};

static void break_device(struct pv_vacant *v, const char *why)
{
	v->broken = true;
	pv_virtio_irq_broken(v->irq, why);
}

/* Answer the next request; false: there is none to be answered. */
static bool answer(struct pv_vacant *v, struct pv_virtqueue *ring)
{
	const struct iovec *writable;
	int result = v->broken ? 0 : pv_virtqueue_pop(ring, &v->chain);

	if (result < 0)
		break_device(v, pv_virtqueue_error(ring));
	if (result <= 0)
		return false;
	if (v->chain.writable == 0) {
		break_device(v, "a block request without a status byte");
		return false;
	}
	/* Every byte that may be, so that the used length takes in the last, which is the status. */
	writable = &v->chain.iov[v->chain.readable];
	for (uint16_t i = 0; i < v->chain.writable; i++)
		memset(writable[i].iov_base, 0, writable[i].iov_len);
	writable += v->chain.writable - 1;
	((uint8_t *)writable->iov_base)[writable->iov_len - 1] = VIRTIO_BLK_S_IOERR;
	pv_virtqueue_push(ring, v->chain.head, (uint32_t)v->chain.writable_bytes);
	return true;
}

/* True: more came in meanwhile. */
static bool serve(struct pv_vacant *v, struct pv_virtqueue *ring)
{
	pv_virtqueue_disable_kicks(ring);
	while (answer(v, ring))
		;
	pv_virtqueue_publish(ring);
	if (pv_virtqueue_needs_notify(ring))
		pv_virtio_irq_used(v->irq);
	return !v->broken && pv_virtqueue_enable_kicks(ring);
}

static void *run(void *argument)
{
	struct pv_vacant *v = argument;
	eventfd_t value;

	do {
		for (uint32_t i = 0; i < v->count; i++) {
			(void)eventfd_read(v->queues[i].kick_fd, &value);
			while (serve(v, v->queues[i].ring))
				;
		}
		(void)poll(v->fds, v->count + 1, -1);
	} while (!(v->fds[v->count].revents & POLLIN));
	return NULL;
}

static void free_all(struct pv_vacant *v)
{
	close(v->fds[v->count].fd);
	free(v);
}

int pv_vacant_start(const struct pv_queue *queues, uint32_t count, struct pv_virtio_irq *irq,
                    struct pv_vacant **out)
{
	struct pv_vacant *v;
	int end_fd, result;

	*out = NULL;
	if (count == 0 || count > PV_VACANT_QUEUES)
		return -EINVAL;
	v = calloc(1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (end_fd < 0) {
		result = -errno;
		free(v);
		return result;
	}
	v->irq = irq;
	v->count = count;
	memcpy(v->queues, queues, count * sizeof(queues[0]));
	for (uint32_t i = 0; i < count; i++)
		v->fds[i] = (struct pollfd){.fd = queues[i].kick_fd, .events = POLLIN};
	v->fds[count] = (struct pollfd){.fd = end_fd, .events = POLLIN};
	result = pv_thread_start(&v->thread, run, v);
	if (result < 0)
		free_all(v);
	else
		*out = v;
	return result;
}

void pv_vacant_stop(struct pv_vacant *v)
{
	if (!v)
		return;
	(void)eventfd_write(v->fds[v->count].fd, 1);
	pthread_join(v->thread, NULL);
	free_all(v);
}
