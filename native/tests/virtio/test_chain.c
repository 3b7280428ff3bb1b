/* A driver that rewrites a descriptor while it is looked at: what was checked is what is used. */
#include <errno.h>
#include <string.h>

#include "tests/check.h"
#include "virtio/virtqueue_internal.h"

enum { SIZE = 8, RAM = 1 << 16, AVAIL = 0x1000, USED = 0x2000, TABLE = 0x3000, DATA = 0x4000 };

static _Alignas(4096) uint8_t ram[RAM];

static struct pv_desc *desc_at(uint64_t table, unsigned index)
{
	return &((struct pv_desc *)(void *)(ram + table))[index];
}

static void rewrite(uint64_t table, uint64_t address)
{
	for (unsigned i = 0; i < SIZE; i++) {
		struct pv_desc *desc = desc_at(table, i);

		if (desc->address != address || desc->length == 0)
			continue;
		desc->address = RAM - 1;
		desc->length *= 256;
		desc->flags = (uint16_t)~desc->flags;
		desc->next = UINT16_MAX;
	}
}

/* Instead of vcpu/memory.c's: between its check and its use whoever names the place is rewritten. */
void *pv_memory_at(const struct pv_memory *memory, uint64_t address, uint64_t length)
{
	(void)memory;
	if (address >= DATA || address == TABLE) {
		rewrite(0, address);
		rewrite(TABLE, address);
	}
	return length > 0 && length <= RAM && address <= RAM - length ? ram + address : NULL;
}

static void describe(uint64_t table, unsigned index, uint64_t address, uint32_t length,
                     uint16_t flags)
{
	*desc_at(table, index) = (struct pv_desc){
		.address = address,
		.length = length,
		.flags = flags,
		.next = (uint16_t)(index + 1),
	};
}

/* Take the chain that begins with the first descriptor; `error` is what is wrong with it. */
static void take(struct pv_chain *chain, const char *error)
{
	const struct pv_virtqueue_config config = {
		.avail = AVAIL, .used = USED, .size = SIZE, .indirect = 1,
	};
	struct pv_avail *avail = (struct pv_avail *)(void *)(ram + AVAIL);
	struct pv_virtqueue *queue;

	avail->idx = 1;
	CHECK_EQ(pv_virtqueue_new(NULL, &config, &queue), 0);
	CHECK_EQ(pv_virtqueue_pop(queue, chain), error ? -EPROTO : 1);
	if (error)
		CHECK_EQ(strcmp(pv_virtqueue_error(queue), error), 0);
	pv_virtqueue_free(queue);
}

static void check_segment(const struct iovec *iov, uint64_t address, uint64_t length)
{
	CHECK(iov->iov_base == ram + address);
	CHECK_EQ(iov->iov_len, length);
}

static void test_descriptors_are_read_once(void)
{
	static struct pv_chain chain;

	memset(ram, 0, sizeof(ram));
	describe(0, 0, DATA, 16, PV_DESC_NEXT);
	describe(0, 1, DATA + 0x100, 32, PV_DESC_NEXT | PV_DESC_WRITE);
	describe(0, 2, DATA + 0x200, 64, PV_DESC_WRITE);
	take(&chain, NULL);
	CHECK_EQ(chain.readable, 1);
	CHECK_EQ(chain.writable, 2);
	CHECK_EQ(chain.readable_bytes, 16);
	CHECK_EQ(chain.writable_bytes, 96);
	check_segment(&chain.iov[0], DATA, 16);
	check_segment(&chain.iov[1], DATA + 0x100, 32);
	check_segment(&chain.iov[2], DATA + 0x200, 64);
	CHECK_EQ(desc_at(0, 2)->length, 64 * 256);
}

static void test_so_are_those_of_an_indirect_table(void)
{
	static struct pv_chain chain;

	memset(ram, 0, sizeof(ram));
	describe(0, 0, TABLE, 2 * sizeof(struct pv_desc), PV_DESC_INDIRECT);
	describe(TABLE, 0, DATA, 16, PV_DESC_NEXT);
	describe(TABLE, 1, DATA + 0x100, 32, PV_DESC_WRITE);
	take(&chain, NULL);
	CHECK_EQ(chain.readable, 1);
	CHECK_EQ(chain.writable, 1);
	check_segment(&chain.iov[0], DATA, 16);
	check_segment(&chain.iov[1], DATA + 0x100, 32);
	CHECK_EQ(desc_at(0, 0)->flags, (uint16_t)~PV_DESC_INDIRECT);
}

static void test_nor_is_a_table_longer_than_it_was(void)
{
	static struct pv_chain chain;

	memset(ram, 0, sizeof(ram));
	describe(0, 0, TABLE, 2 * sizeof(struct pv_desc), PV_DESC_INDIRECT);
	describe(TABLE, 0, DATA, 16, PV_DESC_NEXT);
	describe(TABLE, 1, DATA + 0x100, 32, PV_DESC_NEXT);
	describe(TABLE, 2, DATA + 0x200, 64, 0);
	take(&chain, "indirect descriptor 1: next is 2, in a table of 2");
}

int main(void)
{
	RUN(test_descriptors_are_read_once);
	RUN(test_so_are_those_of_an_indirect_table);
	RUN(test_nor_is_a_table_longer_than_it_was);
	return 0;
}
