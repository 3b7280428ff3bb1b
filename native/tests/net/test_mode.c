/* What a driver takes of the host, by what it asked for: each offload alone. */
#include <string.h>

#include "net/internal.h"
#include "tests/check.h"

#define F(name) (UINT64_C(1) << VIRTIO_NET_F_##name)

static const struct {
	uint64_t features;
	uint32_t offloads;
} OFFLOADS[] = {
	{0, 0},
	{F(GUEST_TSO4) | F(GUEST_TSO6) | F(GUEST_ECN), 0}, /* nothing without checksums */
	{F(GUEST_CSUM), TUN_F_CSUM},
	{F(GUEST_CSUM) | F(GUEST_TSO4), TUN_F_CSUM | TUN_F_TSO4},
	{F(GUEST_CSUM) | F(GUEST_TSO6), TUN_F_CSUM | TUN_F_TSO6},
	{F(GUEST_CSUM) | F(GUEST_ECN), TUN_F_CSUM},
	{F(GUEST_CSUM) | F(GUEST_TSO4) | F(GUEST_ECN), TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN},
	{F(GUEST_CSUM) | F(GUEST_USO4), TUN_F_CSUM},
	{F(GUEST_CSUM) | F(GUEST_USO6), TUN_F_CSUM},
	{F(GUEST_CSUM) | F(GUEST_USO4) | F(GUEST_USO6), TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6},
};

static void test_offloads_of_features(void)
{
	for (unsigned i = 0; i < sizeof(OFFLOADS) / sizeof(OFFLOADS[0]); i++)
		CHECK_EQ(pv_net_offloads(OFFLOADS[i].features), OFFLOADS[i].offloads);
}

/* Every header needs what it needs, and is taken with no bit less. */
static void test_each_header_has_its_offload(void)
{
	static const struct {
		uint8_t flags, type;
		uint32_t needs;
	} headers[] = {
		{0, VIRTIO_NET_HDR_GSO_NONE, 0},
		{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, TUN_F_CSUM},
		{0, VIRTIO_NET_HDR_GSO_TCPV4, TUN_F_TSO4},
		{0, VIRTIO_NET_HDR_GSO_TCPV6, TUN_F_TSO6},
		{0, VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN, TUN_F_TSO4 | TUN_F_TSO_ECN},
		{0, VIRTIO_NET_HDR_GSO_UDP_L4, TUN_F_USO4 | TUN_F_USO6},
	};

	for (unsigned i = 0; i < sizeof(headers) / sizeof(headers[0]); i++)
		for (uint32_t offloads = 0; offloads < 0x80; offloads++) {
			const struct pv_net_mode mode = {.offloads = offloads};
			const struct virtio_net_hdr_v1 header = {
				.flags = headers[i].flags, .gso_type = headers[i].type};

			CHECK_EQ(pv_net_mode_fits(&mode, &header),
			         (headers[i].needs & ~offloads) == 0);
		}
}

static void test_a_type_that_nobody_knows_does_not_fit(void)
{
	const struct pv_net_mode mode = {.offloads = UINT32_MAX};
	const struct virtio_net_hdr_v1 header = {.gso_type = VIRTIO_NET_HDR_GSO_UDP};

	CHECK(!pv_net_mode_fits(&mode, &header));
}

int main(void)
{
	RUN(test_offloads_of_features);
	RUN(test_each_header_has_its_offload);
	RUN(test_a_type_that_nobody_knows_does_not_fit);
	return 0;
}
