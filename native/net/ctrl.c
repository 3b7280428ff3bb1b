/* The control queue: commands by which the driver says what it wants to receive (5.1.6.5).
 *
 * Each is carried out as a whole or not at all. What was not negotiated, is not known, or has not
 * the length that it ought to have, is answered with an error. */
#include <string.h>

#include "net/internal.h"
#include "virtio/iov_internal.h"
#include "virtio/irq.h"

#define VLANS 4096

/* What is still unread of a command's data. */
struct reader {
	const struct pv_chain *chain;
	size_t at;
};

static bool read_bytes(struct reader *reader, void *data, size_t length)
{
	const struct pv_chain *chain = reader->chain;
	size_t got = pv_iov_gather(chain->iov, chain->readable, reader->at, data, length);

	reader->at += got;
	return got == length;
}

static bool is_at_end(const struct reader *reader)
{
	return reader->at == reader->chain->readable_bytes;
}

/* The whole of the data that is left. */
static bool read_last(struct reader *reader, void *data, size_t length)
{
	return read_bytes(reader, data, length) && is_at_end(reader);
}

static bool set_rx_mode(struct pv_net_mode *mode, uint8_t command, struct reader *reader)
{
	uint8_t on;

	if (!read_last(reader, &on, sizeof(on)))
		return false;
	if (command == VIRTIO_NET_CTRL_RX_PROMISC)
		mode->promiscuous = on != 0;
	else if (command == VIRTIO_NET_CTRL_RX_ALLMULTI)
		mode->all_multicast = on != 0;
	else
		return false;
	return true;
}

/* Of a table too long nothing but its length is looked at, and who reads on finds whether it is
 * there. */
static bool read_addresses(struct reader *reader, struct pv_net_addresses *addresses)
{
	uint32_t count;

	if (!read_bytes(reader, &count, sizeof(count)))
		return false;
	addresses->all = count > PV_NET_ADDRESSES;
	addresses->count = addresses->all ? 0 : (uint16_t)count;
	if (!addresses->all)
		return read_bytes(reader, addresses->list, (size_t)count * 6);
	reader->at += (size_t)count * 6;
	return true;
}

static bool set_tables(struct pv_net_mode *mode, struct reader *reader)
{
	struct pv_net_addresses unicast, multicast;

	if (!read_addresses(reader, &unicast) || !read_addresses(reader, &multicast) ||
	    !is_at_end(reader))
		return false;
	mode->unicast = unicast;
	mode->multicast = multicast;
	return true;
}

static bool set_mac(struct pv_net *net, struct pv_net_mode *mode, struct reader *reader)
{
	uint8_t mac[6];

	if (!read_last(reader, mac, sizeof(mac)) || mac[0] & 1)
		return false;
	memcpy(mode->mac, mac, sizeof(mac));
	pv_virtio_irq_set_config(net->irq, offsetof(struct virtio_net_config, mac), mac,
	                         sizeof(mac));
	return true;
}

static bool set_vlan(struct pv_net_mode *mode, uint8_t command, struct reader *reader)
{
	uint16_t id;
	uint64_t bit;

	if (!read_last(reader, &id, sizeof(id)) || id >= VLANS)
		return false;
	bit = UINT64_C(1) << id % 64;
	if (command == VIRTIO_NET_CTRL_VLAN_ADD)
		mode->vlans[id / 64] |= bit;
	else if (command == VIRTIO_NET_CTRL_VLAN_DEL)
		mode->vlans[id / 64] &= ~bit;
	else
		return false;
	return true;
}

static bool set_offloads(const struct pv_net *net, struct pv_net_mode *mode, struct reader *reader)
{
	uint64_t known = UINT64_C(1) << VIRTIO_NET_F_GUEST_CSUM |
	                 UINT64_C(1) << VIRTIO_NET_F_GUEST_TSO4 |
	                 UINT64_C(1) << VIRTIO_NET_F_GUEST_TSO6 |
	                 UINT64_C(1) << VIRTIO_NET_F_GUEST_ECN |
	                 UINT64_C(1) << VIRTIO_NET_F_GUEST_USO4 |
	                 UINT64_C(1) << VIRTIO_NET_F_GUEST_USO6;
	uint64_t offloads;

	if (!read_last(reader, &offloads, sizeof(offloads)) ||
	    offloads & ~(known & net->features))
		return false;
	mode->offloads = pv_net_offloads(offloads);
	return true;
}

static bool change_mode(struct pv_net *net, struct pv_net_mode *mode,
                        const struct virtio_net_ctrl_hdr *header, struct reader *reader)
{
	uint64_t features = net->features;

	switch (header->class) {
	case VIRTIO_NET_CTRL_RX:
		return PV_HAS(features, VIRTIO_NET_F_CTRL_RX) &&
		       set_rx_mode(mode, header->cmd, reader);
	case VIRTIO_NET_CTRL_MAC:
		if (header->cmd == VIRTIO_NET_CTRL_MAC_TABLE_SET)
			return PV_HAS(features, VIRTIO_NET_F_CTRL_RX) && set_tables(mode, reader);
		return header->cmd == VIRTIO_NET_CTRL_MAC_ADDR_SET &&
		       PV_HAS(features, VIRTIO_NET_F_CTRL_MAC_ADDR) && set_mac(net, mode, reader);
	case VIRTIO_NET_CTRL_VLAN:
		return PV_HAS(features, VIRTIO_NET_F_CTRL_VLAN) &&
		       set_vlan(mode, header->cmd, reader);
	case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
		return header->cmd == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET && !net->lent &&
		       PV_HAS(features, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) &&
		       set_offloads(net, mode, reader);
	default:
		return false;
	}
}

static bool set_pairs(struct pv_net *net, uint8_t command, struct reader *reader)
{
	uint16_t pairs;

	return PV_HAS(net->features, VIRTIO_NET_F_MQ) &&
	       command == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET &&
	       read_last(reader, &pairs, sizeof(pairs)) && pv_net_use_pairs(net, pairs) == 0;
}

/* Once, until somebody looks: a driver may change it for ever. An empty slot's is nobody's. */
static void tell_filter(struct pv_net *net)
{
	if (net->port_count == 0 || atomic_exchange(&net->filter_told, true))
		return;
	atomic_store(&net->filter_news, true);
	pv_virtio_irq_news(net->irq);
}

bool pv_net_command(struct pv_net *net, const struct pv_chain *chain)
{
	struct reader reader = {.chain = chain};
	struct virtio_net_ctrl_hdr header;
	bool done;

	if (chain->writable == 0 || !read_bytes(&reader, &header, sizeof(header)))
		return false;
	if (header.class == VIRTIO_NET_CTRL_MQ) {
		done = set_pairs(net, header.cmd, &reader);
	} else if (header.class == VIRTIO_NET_CTRL_ANNOUNCE) {
		done = header.cmd == VIRTIO_NET_CTRL_ANNOUNCE_ACK && is_at_end(&reader) &&
		       pv_net_acknowledge(net) == 0;
	} else {
		pthread_mutex_lock(&net->lock);
		done = change_mode(net, &net->mode, &header, &reader);
		if (done)
			atomic_fetch_add(&net->mode_version, 1);
		pthread_mutex_unlock(&net->lock);
		/* Without the lock: others of the kernel's may keep this. */
		if (done && header.class == VIRTIO_NET_CTRL_GUEST_OFFLOADS)
			pv_net_tap_set_offloads(&net->ports[0], net->mode.offloads);
		else if (done)
			tell_filter(net);
	}
	*(uint8_t *)chain->iov[chain->readable].iov_base = done ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
	return true;
}
