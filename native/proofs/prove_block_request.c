/* Any header, data and ranges of a block request, in up to two segments on either side, of
 * which a request may name 2 ranges (prove.toml): what is read and written of them. */
#include "proofs/chain_model.h"

#include "block/request.c"
#include "virtio/iov.c"

static struct pv_chain chain;
static struct pv_block_request request;

static void add(unsigned out, unsigned in)
{
	static const uint32_t first[] = {15, 16, 1, 16, 48}, second[] = {0, 0, 47, 48, 0};
	static const uint32_t in_first[] = {1, 17, 64, 1}, in_second[] = {0, 0, 1, 1};

	if (out > 0)
		pv_add_readable(&chain, first[out - 1]);
	if (out > 0 && second[out - 1] > 0)
		pv_add_readable(&chain, second[out - 1]);
	if (in > 0)
		pv_add_writable(&chain, in_first[in - 1]);
	if (in > 0 && in_second[in - 1] > 0)
		pv_add_writable(&chain, in_second[in - 1]);
}

/* The type is where the driver put it, the rest of the header anything. */
static void put_type(unsigned which)
{
	static const uint32_t types[] = {
		VIRTIO_BLK_T_IN,     VIRTIO_BLK_T_OUT,          VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
		VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, UINT32_MAX,
	};

	pv_iov_scatter(chain.iov, chain.readable, 0, &types[which], sizeof(types[which]));
}

static void check(void)
{
	struct pv_block_limits limits = {
		.sectors = PV_ANY(0, UINT32_MAX),
		.features = Frama_C_unsigned_long_long_interval(0, UINT64_MAX),
		.readonly = PV_ANY_BOOL(),
	};

	(void)pv_block_check(&limits, &request);
	/*@ assert no_more_than_room: request.ranges <= PV_BLOCK_RANGES; */
}

int main(void)
{
	unsigned out = pv_each(5), in = pv_each(4), type = pv_each(6);

	PV_UNKNOWN(request);
	pv_begin_chain(&chain);
	add(out, in);
	put_type(type);
	if (!pv_block_parse(&chain, &request)) {
		/*@ assert segments: request.left <= 2; */
		*request.answer = request.status;
		check();
		pv_block_clear_rest(&request);
	}
	return 0;
}
