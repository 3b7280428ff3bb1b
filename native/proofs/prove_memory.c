/* Where any guest-physical range of any length is mapped: within the region it lies in, or nowhere. */
#include "proofs/model.h"

#include "vcpu/memory.c"

#define BYTES 4096

static uint8_t low[BYTES], high[BYTES];
static struct pv_memory memory;

int main(void)
{
	uint64_t address = Frama_C_unsigned_long_long_interval(0, UINT64_MAX);
	uint64_t length = Frama_C_unsigned_long_long_interval(0, UINT64_MAX);
	uint64_t last = UINT64_MAX - (BYTES - 1);
	uint8_t *at;

	(void)pv_memory_add(&memory, pv_each(1) ? 0 : 3 * BYTES, BYTES, low);
	(void)pv_memory_add(&memory, last, BYTES, high);
	at = pv_memory_at(&memory, address, length);
	if (at) {
		/*@ assert is_mapped: \valid(at); */
		/*@ assert not_empty: length > 0; */
		/*@ assert not_longer: length <= BYTES; */
		*at = 0;
	}
	return 0;
}
