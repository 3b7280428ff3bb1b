#include "vsock/vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "virtio/irq.h"
#include "vsock/internal.h"

_Static_assert(sizeof(struct pv_vsock_stats) == PV_VSOCK_COUNTERS * sizeof(uint64_t), "same order");

static int set_up(struct pv_vsock *vsock)
{
	vsock->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vsock->wake_fd < 0)
		return -errno;
	vsock->conns = calloc(vsock->limit, sizeof(*vsock->conns));
	return vsock->conns ? pv_vsock_make_rings(vsock) : -ENOMEM;
}

int pv_vsock_new(const struct pv_vsock_config *config, struct pv_vsock **out)
{
	size_t length = strlen(config->path);
	struct pv_vsock *vsock;
	int result;

	*out = NULL;
	if (length == 0 || length > PV_VSOCK_PATH_MAX || config->connections == 0 ||
	    config->connections > PV_VSOCK_CONNECTIONS)
		return -EINVAL;
	vsock = calloc(1, sizeof(*vsock));
	if (!vsock)
		return -ENOMEM;
	vsock->guest_cid = config->guest_cid;
	vsock->listen_fd = config->listen_fd;
	vsock->limit = config->connections;
	result = set_up(vsock);
	if (result < 0) {
		pv_vsock_free(vsock);
		return result;
	}
	memcpy(vsock->path, config->path, length);
	*out = vsock;
	return 0;
}

void pv_vsock_free(struct pv_vsock *vsock)
{
	if (!vsock)
		return;
	if (vsock->wake_fd >= 0)
		close(vsock->wake_fd);
	pv_vsock_free_rings(vsock);
	free(vsock->conns);
	free(vsock);
}

/* A queue of a test has no eventfd. */
static int watch_queue(struct pv_vsock *vsock, const struct pv_queue *queue, uint64_t place)
{
	return queue->kick_fd < 0 ? 0 : pv_vsock_watch_fd(vsock, queue->kick_fd, place);
}

int pv_vsock_begin(struct pv_vsock *vsock, const struct pv_vsock_activation *activation)
{
	int result;

	vsock->rx = activation->rx;
	vsock->tx = activation->tx;
	vsock->irq = activation->irq;
	vsock->faults = pv_virtio_irq_faults(activation->irq);
	vsock->rx_wait = vsock->tx_wait = PV_VSOCK_MORE;
	vsock->notify = vsock->clients = vsock->broken = false;
	vsock->retry_at = 0;
	vsock->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (vsock->epoll_fd < 0)
		return -errno;
	result = pv_vsock_watch_fd(vsock, vsock->wake_fd, PV_VSOCK_ON_WAKE);
	if (result == 0)
		result = pv_vsock_watch_fd(vsock, vsock->listen_fd, PV_VSOCK_ON_CLIENTS);
	if (result == 0)
		result = watch_queue(vsock, &vsock->rx, PV_VSOCK_ON_RX);
	if (result == 0)
		result = watch_queue(vsock, &vsock->tx, PV_VSOCK_ON_TX);
	if (result < 0)
		pv_vsock_end(vsock);
	return result;
}

void pv_vsock_end(struct pv_vsock *vsock)
{
	pv_vsock_drop_all(vsock);
	close(vsock->epoll_fd);
}

int pv_vsock_start(struct pv_vsock *vsock, const struct pv_vsock_activation *activation)
{
	int result;

	if (vsock->running)
		return -EBUSY;
	if (!activation->rx.ring || !activation->tx.ring)
		return -EINVAL;
	result = pv_vsock_begin(vsock, activation);
	if (result < 0)
		return result;
	result = pv_thread_run(&vsock->thread, pv_vsock_run, vsock);
	vsock->running = result == 0;
	if (result < 0)
		pv_vsock_end(vsock);
	return result;
}

int pv_vsock_stop(struct pv_vsock *vsock, uint64_t timeout_ns)
{
	if (!vsock->running)
		return 0;
	if (!vsock->paused) {
		pv_thread_ask(&vsock->thread);
		(void)eventfd_write(vsock->wake_fd, 1);
		if (pv_thread_wait(&vsock->thread, pv_deadline(timeout_ns)) < 0)
			return -ETIMEDOUT;
	}
	vsock->running = vsock->paused = false;
	pv_vsock_end(vsock);
	return 0;
}

int pv_vsock_drain(struct pv_vsock *vsock, uint64_t timeout_ns)
{
	if (!vsock->running || vsock->paused)
		return 0;
	if (pv_thread_pause(&vsock->thread, vsock->wake_fd, timeout_ns) < 0)
		return -ETIMEDOUT;
	vsock->paused = true;
	return 0;
}

int pv_vsock_resume(struct pv_vsock *vsock)
{
	int result;

	if (!vsock->paused)
		return 0;
	vsock->rx_wait = vsock->tx_wait = PV_VSOCK_MORE;
	result = pv_thread_run(&vsock->thread, pv_vsock_run, vsock);
	vsock->paused = result < 0;
	return result;
}

void pv_vsock_stats(const struct pv_vsock *vsock, struct pv_vsock_stats *stats)
{
	uint64_t values[PV_VSOCK_COUNTERS];

	for (uint32_t i = 0; i < PV_VSOCK_COUNTERS; i++)
		values[i] = atomic_load_explicit(&vsock->counters[i], memory_order_relaxed);
	memcpy(stats, values, sizeof(*stats));
}
