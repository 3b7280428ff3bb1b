#include "block.h"

#define SECTOR 512

struct block_header *block_request(struct request *request, uint32_t type, uint64_t sector,
                                   uint32_t length, enum direction direction)
{
	struct block_header *header = request_add(request, sizeof(*header), OUT);

	header->type = type;
	header->sector = sector;
	if (length)
		request_add(request, length, direction);
	*(uint8_t *)request_add(request, 1, IN) = STATUS_NONE;
	return header;
}

uint8_t block_status(const struct request *request)
{
	return *(volatile uint8_t *)request->segments[request->count - 1].at;
}

void block_fill(const struct device *device, struct request *request)
{
	(void)device;
	block_request(request, BLOCK_IN, 0, SECTOR, IN);
}

enum outcome block_judge(const struct request *request, uint32_t length)
{
	uint8_t status = block_status(request);

	if (status == STATUS_NONE)
		return length == 0 ? OUTCOME_NOTHING : OUTCOME_BAD;
	if (status == STATUS_IOERR || status == STATUS_UNSUPP)
		return OUTCOME_ERROR;
	/* What a read returns is all there. */
	return status == STATUS_OK && length == request->room ? OUTCOME_SERVED : OUTCOME_BAD;
}
