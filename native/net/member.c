/* A pair of queues on a thread that is shared with others. What is watched there tells that
 * something has changed, once, and not how it is: who waits for the host has seen -EAGAIN. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "net/internal.h"
#include "virtio/irq.h"

/* Take what the engine has seen; false: nothing. */
static bool look(struct pv_net_worker *w)
{
	short port = w->watches[PV_NET_READABLE].seen | w->watches[PV_NET_WRITABLE].seen;
	bool any = false;

	for (uint32_t i = 0; i < PV_NET_WATCHES; i++) {
		any |= w->watches[i].seen != 0;
		if (w->watches[i].seen != 0 && i >= PV_NET_RX && i <= PV_NET_CTRL)
			pv_net_count(w, PV_KICKS, 1);
		w->watches[i].seen = 0;
	}
	if (!w->lost)
		pv_net_look_at_port(w, port);
	return any;
}

/* Others are served between two calls: it is not its turn with every wake of theirs. */
static uint64_t serve(struct pv_member *member)
{
	struct pv_net_worker *w = (struct pv_net_worker *)member;
	const struct pv_net *net = w->net;
	bool seen;

	if (pv_thread_is_to_end(&w->thread))
		return PV_SERVE_END;
	if (atomic_load(&net->broken))
		return PV_FOREVER;
	seen = look(w);
	if (!seen && !w->more && pv_net_delay(w) == PV_FOREVER)
		return PV_FOREVER;
	w->more = pv_net_pass(w, !w->more);
	w->watches[PV_NET_WRITABLE].wanted = w->tx.wait == PV_WAIT_PORT || w->flushing;
	if (atomic_load(&net->broken))
		return PV_FOREVER;
	return w->more ? 0 : pv_net_delay(w);
}

static const struct pv_member_ops OPS = {.serve = serve};

static int watch_all(struct pv_net_worker *w)
{
	bool has_port = w->port->ops && !w->lost;
	const struct pv_watch watches[PV_NET_WATCHES] = {
		[PV_NET_WAKE] = {.fd = w->wake_fd, .events = POLLIN},
		[PV_NET_RX] = {.fd = w->rx.queue.kick_fd, .events = POLLIN},
		[PV_NET_TX] = {.fd = w->tx.queue.kick_fd, .events = POLLIN},
		[PV_NET_CTRL] = {.fd = -1, .events = POLLIN},
		[PV_NET_READABLE] = {.fd = has_port ? w->port->fd : -1, .events = POLLIN},
		[PV_NET_WRITABLE] = {.fd = -1, .events = POLLOUT, .once = true},
	};

	memcpy(w->watches, watches, sizeof(watches));
	if (w->index == 0 && w->net->ctrl.ring)
		w->watches[PV_NET_CTRL].fd = w->net->ctrl.kick_fd;
	if (!has_port)
		return 0;
	w->watches[PV_NET_WRITABLE].fd = fcntl(w->port->fd, F_DUPFD_CLOEXEC, 0);
	return w->watches[PV_NET_WRITABLE].fd < 0 ? -errno : 0;
}

static void drop(struct pv_net_worker *w)
{
	if (w->watches[PV_NET_WRITABLE].fd >= 0)
		close(w->watches[PV_NET_WRITABLE].fd);
	w->shared = NULL;
}

int pv_net_join(struct pv_net_worker *w, struct pv_iothread *thread)
{
	int result = watch_all(w);

	if (result < 0)
		return result;
	w->shared = thread;
	w->more = true;
	pv_thread_stand_in(&w->thread);
	w->member = (struct pv_member){
		.ops = &OPS,
		.watches = w->watches,
		.watch_count = PV_NET_WATCHES,
		.device = pv_virtio_irq_name(w->net->irq),
	};
	result = pv_iothread_attach(thread, NULL, &w->member);
	if (result < 0)
		drop(w);
	return result;
}

int pv_net_leave(struct pv_net_worker *w, uint64_t deadline)
{
	int result = pv_iothread_detach(w->shared, &w->member, deadline);

	if (result == 0)
		drop(w);
	return result;
}
