#include "vcpu/memory.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

struct region {
	uint64_t address;
	uint64_t size;
	uint8_t *host;
};

struct pv_memory {
	unsigned count;
	unsigned files;
	struct region regions[PV_MEMORY_REGIONS];
	struct pv_memory_file shared[PV_MEMORY_FILES];
};

int pv_memory_new(struct pv_memory **out)
{
	*out = calloc(1, sizeof(**out));
	return *out ? 0 : -ENOMEM;
}

void pv_memory_free(struct pv_memory *memory)
{
	free(memory);
}

static int overlaps(const struct region *region, uint64_t address, uint64_t last)
{
	return address <= region->address + (region->size - 1) && region->address <= last;
}

int pv_memory_add(struct pv_memory *memory, uint64_t address, uint64_t size, void *host)
{
	/* The last byte, not the end, which 64 bits may not hold. */
	uint64_t last = address + (size - 1);

	if (!host || size == 0 || last < address)
		return -EINVAL;
	for (unsigned i = 0; i < memory->count; i++)
		if (overlaps(&memory->regions[i], address, last))
			return -EINVAL;
	if (memory->count == PV_MEMORY_REGIONS)
		return -ENOSPC;
	memory->regions[memory->count++] = (struct region){address, size, host};
	return 0;
}

int pv_memory_share(struct pv_memory *memory, const struct pv_memory_file *file)
{
	if (!pv_memory_at(memory, file->address, file->size))
		return -EINVAL;
	if (memory->files == PV_MEMORY_FILES)
		return -ENOSPC;
	memory->shared[memory->files++] = *file;
	return 0;
}

void *pv_memory_at(const struct pv_memory *memory, uint64_t address, uint64_t length)
{
	if (length == 0)
		return NULL;
	for (unsigned i = 0; i < memory->count; i++) {
		const struct region *region = &memory->regions[i];
		uint64_t offset = address - region->address; /* huge when below the region */

		if (offset < region->size && length <= region->size - offset)
			return region->host + offset;
	}
	return NULL;
}

int pv_memory_region(const struct pv_memory *memory, unsigned index, uint64_t *address,
                     uint64_t *size, void **host)
{
	if (index >= memory->count)
		return -ENOENT;
	*address = memory->regions[index].address;
	*size = memory->regions[index].size;
	*host = memory->regions[index].host;
	return 0;
}

int pv_memory_file(const struct pv_memory *memory, unsigned index, struct pv_memory_file *file)
{
	if (index >= memory->files)
		return -ENOENT;
	*file = memory->shared[index];
	return 0;
}
