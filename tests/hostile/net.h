/* Packets (virtio 1.2, 5.1.6). */
#pragma once

#include "kind.h"

#define NET_MRG_RXBUF BIT(15)
#define NET_CTRL_VQ BIT(17)
#define NET_FEATURES (INDIRECT_DESC | NET_CTRL_VQ)

struct net_header {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t header_length;
	uint16_t gso_size;
	uint16_t checksum_start;
	uint16_t checksum_offset;
	uint16_t buffers;
};

#define FRAME_BYTES 60

/* Ask by ARP who has 10.0.2.2, in one segment: header and frame. */
void net_fill(const struct device *device, struct request *request);
