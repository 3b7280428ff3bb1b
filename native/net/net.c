#include "net/net.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "net/internal.h"
#include "virtio/irq.h"

#define SPARE_NS UINT64_C(1000000000)

_Static_assert(sizeof(struct pv_net_stats) == PV_NET_COUNTERS * sizeof(uint64_t), "same order");

int pv_net_new(const struct pv_net_config *config, struct pv_net **out)
{
	struct pv_net *net = calloc(1, sizeof(*net));

	*out = net;
	if (!net)
		return -ENOMEM;
	net->config = *config;
	net->vhost_error_fd = -1;
	pv_net_limit_init(&net->rx_limit, config->rx_packets, config->rx_bytes);
	pv_net_limit_init(&net->tx_limit, config->tx_packets, config->tx_bytes);
	pthread_mutex_init(&net->lock, NULL);
	pv_net_mode_init(&net->mode, config->mac, 0);
	atomic_store(&net->link, true);
	return 0;
}

void pv_net_free(struct pv_net *net)
{
	if (!net)
		return;
	pthread_mutex_destroy(&net->lock);
	free(net);
}

static int start_thread(struct pv_net_worker *w)
{
	struct pv_iothread *shared = w->net->vhost ? NULL : w->net->iothread;
	int result = shared ? pv_net_join(w, shared) : pv_net_run(w);

	w->running = result == 0;
	return result;
}

static int end_thread(struct pv_net_worker *w, uint64_t deadline)
{
	return w->shared ? pv_net_leave(w, deadline) : pv_net_end(w, deadline);
}

/* What was in flight is as if it had never been popped; a packet that was held is lost. */
static void put_back(struct pv_net_worker *w)
{
	pv_virtqueue_rewind(w->rx.queue.ring);
	pv_virtqueue_rewind(w->tx.queue.ring);
	w->rx.stock.first_buffer = w->rx.stock.buffer_count = 0;
	w->rx.stock.first_segment = w->rx.stock.segment_count = 0;
	w->rx.stock.bytes = w->rx.held = 0;
	w->rx.wait = w->tx.wait = PV_WAIT_NONE;
	w->tx.held = w->flushing = w->lost = false;
}

static void ask_threads(struct pv_net *net)
{
	for (uint32_t i = 0; i < net->count; i++)
		if (net->workers[i]->running)
			pv_thread_ask(&net->workers[i]->thread);
	pv_net_wake(net);
}

/* -ETIMEDOUT: some go on; to be tried again before anything else is done. */
static int pause_threads(struct pv_net *net, uint64_t deadline)
{
	int result = 0;

	ask_threads(net);
	for (uint32_t i = 0; i < net->count; i++) {
		struct pv_net_worker *w = net->workers[i];

		if (w->running && end_thread(w, deadline) < 0)
			result = -ETIMEDOUT;
		else
			w->running = false;
	}
	for (uint32_t i = 0; i < net->count && result == 0; i++)
		put_back(net->workers[i]);
	if (result == 0)
		pv_net_vhost_end(net);
	return result;
}

/* As pause_threads; if it fails the device is broken. */
static int pause_or_break(struct pv_net *net, uint64_t deadline)
{
	int result = net->count > 0 ? pause_threads(net, deadline) : 0;

	if (result < 0)
		pv_net_break(net, "the host keeps its threads");
	return result;
}

/* A tap that cannot be told something is gone, as the threads will find. */
static int resume_threads(struct pv_net *net)
{
	int result = 0;

	if (net->port_count > 0) {
		pv_net_tap_set_offloads(&net->ports[0], net->mode.offloads);
		(void)pv_net_tap_spread(net->ports, net->port_count, atomic_load(&net->active));
	}
	/* The kernel knows of no link that is down. */
	if (net->has_vhost && atomic_load(&net->link))
		result = pv_net_vhost_start(net);
	for (uint32_t i = 0; i < (pv_net_is_away(net) ? 1 : net->count) && result == 0; i++)
		result = start_thread(net->workers[i]);
	if (result < 0)
		(void)pause_threads(net, PV_FOREVER);
	return result;
}

/* Have the threads go on that have not ended yet, and start the others again. Those that are about to
 * end need a moment for it, but for the one that waits for vhost. */
static int spare_threads(struct pv_net *net)
{
	int result = 0;

	for (uint32_t i = 0; i < net->count && result == 0; i++) {
		struct pv_net_worker *w = net->workers[i];

		if (i > 0 && pv_net_is_away(net))
			break;
		if (w->running && pv_thread_spare(&w->thread))
			continue;
		if (w->running)
			result = end_thread(w, pv_deadline(SPARE_NS));
		if (result == 0)
			result = start_thread(w);
	}
	if (result < 0)
		pv_net_break(net, "the host keeps its threads");
	return result;
}

int pv_net_drain(struct pv_net *net, uint64_t timeout_ns)
{
	if (net->count == 0 || pause_threads(net, pv_deadline(timeout_ns)) == 0)
		return 0;
	(void)spare_threads(net);
	return -ETIMEDOUT;
}

static void reset_mode(struct pv_net *net, uint64_t features)
{
	pthread_mutex_lock(&net->lock);
	pv_net_mode_init(&net->mode, net->config.mac, features);
	atomic_fetch_add(&net->mode_version, 1);
	pthread_mutex_unlock(&net->lock);
}

/* What a driver may not have set up is left out. */
static void begin_mode(struct pv_net *net, uint32_t pairs)
{
	if (!net->restored) {
		atomic_store(&net->active, 1);
		reset_mode(net, net->features);
		return;
	}
	net->restored = false;
	if (atomic_load(&net->active) > pairs)
		atomic_store(&net->active, pairs);
	pthread_mutex_lock(&net->lock);
	net->mode.offloads &= pv_net_offloads(net->features);
	atomic_fetch_add(&net->mode_version, 1);
	pthread_mutex_unlock(&net->lock);
}

static int make_worker(struct pv_net *net, const struct pv_net_pair *pair)
{
	struct pv_net_worker *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->wake_fd < 0) {
		int result = -errno;

		free(w);
		return result;
	}
	w->net = net;
	w->index = net->count;
	w->port = &net->ports[w->index];
	w->counters = net->counters[w->index];
	w->rx.queue = pair->rx;
	w->tx.queue = pair->tx;
	net->workers[net->count++] = w;
	return 0;
}

int pv_net_start(struct pv_net *net, const struct pv_net_activation *activation)
{
	int result = 0;

	if (net->count > 0)
		return -EBUSY;
	if (activation->count == 0 || activation->count > PV_NET_PAIRS ||
	    (net->has_vhost && activation->count > net->port_count) ||
	    (net->lent && activation->count > 1))
		return -EINVAL;
	net->features = activation->features;
	net->ctrl = activation->ctrl;
	net->irq = activation->irq;
	net->faults = pv_virtio_irq_faults(net->irq);
	net->memory = activation->memory;
	atomic_store(&net->broken, false);
	pv_net_end_announcements(net);
	begin_mode(net, activation->count);
	for (uint32_t i = 0; i < activation->count && result == 0; i++)
		result = make_worker(net, &activation->pairs[i]);
	if (result == 0)
		result = resume_threads(net);
	if (result < 0)
		(void)pv_net_stop(net, PV_FOREVER);
	return result;
}

int pv_net_stop(struct pv_net *net, uint64_t timeout_ns)
{
	if (net->restored) {
		net->restored = false;
		reset_mode(net, 0);
	}
	if (net->count == 0)
		return 0;
	if (pause_threads(net, pv_deadline(timeout_ns)) < 0)
		return -ETIMEDOUT;
	while (net->count > 0) {
		struct pv_net_worker *w = net->workers[--net->count];

		close(w->wake_fd);
		free(w);
	}
	pv_net_end_announcements(net);
	reset_mode(net, 0);
	return 0;
}

static void close_ports(struct pv_net *net)
{
	while (net->port_count > 0) {
		struct pv_net_port *port = &net->ports[--net->port_count];

		if (net->has_vhost)
			pv_net_vhost_close(net->vhost_fds[net->port_count]);
		port->ops->close(port);
		*port = (struct pv_net_port){0};
	}
	net->has_vhost = net->lent = false;
	net->iothread = NULL;
	pv_net_end_announcements(net);
	atomic_store(&net->lost, false);
	atomic_store(&net->news, false);
	atomic_store(&net->filter_told, false);
	atomic_store(&net->filter_news, false);
}

static int unblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

static int open_port(struct pv_net *net, const struct pv_net_backend *backend, uint32_t index)
{
	struct pv_net_port *port = &net->ports[index];
	int fd = backend->fds[index], result = unblock(fd);

	if (result == 0 && backend->kind == PV_NET_TAP)
		pv_net_tap_open(port, fd);
	else if (result == 0)
		result = pv_net_stream_open(port, fd);
	if (result < 0)
		return result;
	net->port_count++;
	if (!backend->vhost_fds)
		return 0;
	net->has_vhost = true;
	net->vhost_fds[index] = backend->vhost_fds[index];
	return pv_net_vhost_open(net->vhost_fds[index]);
}

static bool is_valid(const struct pv_net_backend *backend)
{
	if (backend->iothread && backend->vhost_fds)
		return false;
	if (backend->kind == PV_NET_LENT)
		return backend->count == 1 && !backend->iothread && !backend->vhost_fds;
	if (backend->kind == PV_NET_STREAM)
		return backend->count == 1 && !backend->vhost_fds;
	return backend->kind == PV_NET_TAP && backend->count > 0 && backend->count <= PV_NET_PAIRS;
}

/* Start the threads again after pause_threads; -errno, and the device is broken. */
static int go_on(struct pv_net *net)
{
	int result = net->count > 0 ? resume_threads(net) : 0;

	if (result < 0)
		pv_net_break(net, "its threads cannot be started again");
	return result;
}

int pv_net_resume(struct pv_net *net)
{
	return go_on(net);
}

void pv_net_save(struct pv_net *net, struct pv_net_state *state)
{
	pthread_mutex_lock(&net->lock);
	state->mode = net->mode;
	pthread_mutex_unlock(&net->lock);
	state->pairs = atomic_load(&net->active);
}

int pv_net_restore(struct pv_net *net, const struct pv_net_state *state)
{
	const struct pv_net_mode *mode = &state->mode;

	if (net->count > 0 || state->pairs == 0 || state->pairs > PV_NET_PAIRS ||
	    mode->mac[0] & 1 || mode->unicast.count > PV_NET_ADDRESSES ||
	    mode->multicast.count > PV_NET_ADDRESSES)
		return -EINVAL;
	pthread_mutex_lock(&net->lock);
	net->mode = *mode;
	atomic_fetch_add(&net->mode_version, 1);
	pthread_mutex_unlock(&net->lock);
	atomic_store(&net->active, state->pairs);
	net->restored = true;
	return 0;
}

int pv_net_attach(struct pv_net *net, const struct pv_net_backend *backend, uint64_t timeout_ns)
{
	int result;

	if (net->port_count > 0 || net->lent)
		return -EBUSY;
	if (!is_valid(backend) || (backend->vhost_fds && backend->count < net->count) ||
	    (backend->kind == PV_NET_LENT && net->count > 1))
		return -EINVAL;
	result = pause_or_break(net, pv_deadline(timeout_ns));
	if (result < 0)
		return result;
	net->iothread = backend->iothread;
	net->lent = backend->kind == PV_NET_LENT;
	for (uint32_t i = 0; i < backend->count && !net->lent && result == 0; i++)
		result = open_port(net, backend, i);
	if (result == 0 && net->count > 0)
		result = resume_threads(net);
	if (result < 0) {
		close_ports(net);
		(void)go_on(net);
	}
	return result;
}

int pv_net_detach(struct pv_net *net, uint64_t timeout_ns)
{
	int result;

	if (net->port_count == 0 && !net->lent)
		return 0;
	result = pause_or_break(net, pv_deadline(timeout_ns));
	if (result < 0)
		return result;
	close_ports(net);
	return go_on(net);
}

int pv_net_set_link(struct pv_net *net, int up, uint64_t timeout_ns)
{
	bool pauses = net->has_vhost && net->count > 0;
	int result;

	if (atomic_load(&net->link) == (up != 0))
		return 0;
	result = pauses ? pause_or_break(net, pv_deadline(timeout_ns)) : 0;
	if (result < 0)
		return result;
	atomic_store(&net->link, up != 0);
	return pauses ? go_on(net) : 0;
}

void pv_net_mac(struct pv_net *net, uint8_t mac[6])
{
	pthread_mutex_lock(&net->lock);
	memcpy(mac, net->mode.mac, 6);
	pthread_mutex_unlock(&net->lock);
}

void pv_net_set_mac(struct pv_net *net, const uint8_t mac[6])
{
	memcpy(net->config.mac, mac, 6);
	reset_mode(net, 0);
}

int pv_net_take_lost(struct pv_net *net)
{
	return atomic_exchange(&net->news, false);
}

void pv_net_read_mode(struct pv_net *net, struct pv_net_mode *mode)
{
	atomic_store(&net->filter_told, false);
	pthread_mutex_lock(&net->lock);
	*mode = net->mode;
	pthread_mutex_unlock(&net->lock);
}

int pv_net_take_filter_change(struct pv_net *net)
{
	return atomic_exchange(&net->filter_news, false);
}

void pv_net_stats(const struct pv_net *net, struct pv_net_stats *stats)
{
	uint64_t sums[PV_NET_COUNTERS] = {0};

	for (uint32_t i = 0; i < PV_NET_PAIRS; i++)
		for (uint32_t counter = 0; counter < PV_NET_COUNTERS; counter++)
			sums[counter] += atomic_load_explicit(&net->counters[i][counter],
			                                      memory_order_relaxed);
	memcpy(stats, sums, sizeof(*stats));
}
