/* What the driver wants to receive: addresses, VLANs, offloads. */
#include <string.h>

#include "net/internal.h"

#define VLAN 0x8100
#define VLAN_ID 0xfff

uint32_t pv_net_offloads(uint64_t features)
{
	uint32_t offloads = 0, tso;

	if (!PV_HAS(features, VIRTIO_NET_F_GUEST_CSUM))
		return 0;
	tso = (PV_HAS(features, VIRTIO_NET_F_GUEST_TSO4) ? TUN_F_TSO4 : 0) |
	      (PV_HAS(features, VIRTIO_NET_F_GUEST_TSO6) ? TUN_F_TSO6 : 0);
	offloads = TUN_F_CSUM | tso;
	if (tso && PV_HAS(features, VIRTIO_NET_F_GUEST_ECN))
		offloads |= TUN_F_TSO_ECN;
	/* A tap has both or neither. */
	if (PV_HAS(features, VIRTIO_NET_F_GUEST_USO4) && PV_HAS(features, VIRTIO_NET_F_GUEST_USO6))
		offloads |= TUN_F_USO4 | TUN_F_USO6;
	return offloads;
}

void pv_net_mode_init(struct pv_net_mode *mode, const uint8_t mac[6], uint64_t features)
{
	memset(mode, 0, sizeof(*mode));
	memcpy(mode->mac, mac, sizeof(mode->mac));
	mode->promiscuous = true;
	mode->filters_vlans = PV_HAS(features, VIRTIO_NET_F_CTRL_VLAN);
	mode->offloads = pv_net_offloads(features);
}

static bool lists(const struct pv_net_addresses *addresses, const uint8_t *address)
{
	for (uint32_t i = 0; i < addresses->count; i++)
		if (memcmp(addresses->list[i], address, 6) == 0)
			return true;
	return addresses->all;
}

/* A frame of VLAN 0 has a priority and belongs to none. */
static bool wants_vlan(const struct pv_net_mode *mode, const uint8_t *frame)
{
	uint32_t id = (uint32_t)(frame[14] << 8 | frame[15]) & VLAN_ID;

	return !mode->filters_vlans || (frame[12] << 8 | frame[13]) != VLAN || id == 0 ||
	       (mode->vlans[id / 64] >> id % 64 & 1) != 0;
}

bool pv_net_mode_wants(const struct pv_net_mode *mode, const uint8_t frame[PV_NET_PEEK])
{
	static const uint8_t BROADCAST[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

	if (mode->promiscuous)
		return true;
	if (!wants_vlan(mode, frame))
		return false;
	if (frame[0] & 1)
		return mode->all_multicast || memcmp(frame, BROADCAST, 6) == 0 ||
		       lists(&mode->multicast, frame);
	return memcmp(frame, mode->mac, 6) == 0 || lists(&mode->unicast, frame);
}

bool pv_net_mode_fits(const struct pv_net_mode *mode, const struct virtio_net_hdr_v1 *header)
{
	uint32_t needs = header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ? TUN_F_CSUM : 0;

	switch (header->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_NONE:
		break;
	case VIRTIO_NET_HDR_GSO_TCPV4:
		needs |= TUN_F_TSO4;
		break;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		needs |= TUN_F_TSO6;
		break;
	case VIRTIO_NET_HDR_GSO_UDP_L4:
		needs |= TUN_F_USO4 | TUN_F_USO6;
		break;
	default:
		return false;
	}
	if (header->gso_type & VIRTIO_NET_HDR_GSO_ECN)
		needs |= TUN_F_TSO_ECN;
	return (needs & ~mode->offloads) == 0;
}
