/* A driver that is asked to tell its network where it is (virtio 1.2, 5.1.6.5.4), as after another
 * backend came. Linux does so at once, and says nothing while it has not yet taken notice that the
 * link is up; so it is asked again. */
#include <errno.h>
#include <stddef.h>

#include "net/internal.h"
#include "virtio/irq.h"

#define ROUNDS 3
#define FIRST_NS UINT64_C(50000000) /* each that follows comes after three times as long */
#define FLAP_NS UINT64_C(300000000)

void pv_net_end_announcements(struct pv_net *net)
{
	atomic_store(&net->announcements, 0);
	atomic_store(&net->announcing, false);
	atomic_store(&net->flapping, false);
	atomic_store(&net->announcement, false);
}

static bool can_be_asked(const struct pv_net *net)
{
	/* Without a control queue there would be no answer. */
	return net->ctrl.ring && PV_HAS(net->features, VIRTIO_NET_F_GUEST_ANNOUNCE);
}

static void begin(struct pv_net *net, uint32_t rounds, uint64_t delay_ns)
{
	atomic_store(&net->announce_at, pv_now_ns() + delay_ns);
	atomic_store(&net->announcements, rounds);
	pv_net_wake(net);
}

void pv_net_announce(struct pv_net *net)
{
	if (net->count > 0 && can_be_asked(net))
		begin(net, ROUNDS, FIRST_NS);
}

void pv_net_arrive(struct pv_net *net)
{
	if (net->count == 0 || can_be_asked(net) ||
	    !PV_HAS(net->features, VIRTIO_NET_F_STATUS)) {
		pv_net_announce(net);
		return;
	}
	atomic_store(&net->flapping, true);
	begin(net, 1, FLAP_NS);
}

uint64_t pv_net_announcement_delay(const struct pv_net *net)
{
	uint64_t at = atomic_load(&net->announce_at), now;

	if (atomic_load(&net->announcements) == 0)
		return UINT64_MAX;
	now = pv_now_ns();
	return at > now ? at - now : 0;
}

void pv_net_ask_to_announce(struct pv_net *net)
{
	uint32_t left = atomic_load(&net->announcements);
	uint64_t pause = FIRST_NS;

	if (left == 0 || pv_net_announcement_delay(net) > 0)
		return;
	for (uint32_t i = left; i <= ROUNDS; i++)
		pause *= 3;
	atomic_store(&net->announce_at, pv_now_ns() + pause);
	atomic_store(&net->announcements, left - 1);
	if (!atomic_exchange(&net->flapping, false)) {
		if (!atomic_load(&net->link))
			return;
		atomic_store(&net->announcing, true);
	}
	atomic_store(&net->announcement, true);
	pv_virtio_irq_news(net->irq);
}

/* The bit is gone before the answer is there. */
int pv_net_acknowledge(struct pv_net *net)
{
	if (!PV_HAS(net->features, VIRTIO_NET_F_GUEST_ANNOUNCE))
		return -EINVAL;
	atomic_store(&net->announcing, false);
	pv_virtio_irq_clear_config(net->irq, offsetof(struct virtio_net_config, status),
	                           VIRTIO_NET_S_ANNOUNCE);
	return 0;
}

int pv_net_is_announcing(const struct pv_net *net)
{
	return atomic_load(&net->announcing);
}

int pv_net_is_flapping(const struct pv_net *net)
{
	return atomic_load(&net->flapping);
}

int pv_net_take_announcement(struct pv_net *net)
{
	return atomic_exchange(&net->announcement, false);
}
