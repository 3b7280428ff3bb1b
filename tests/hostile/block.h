/* Requests to disks (virtio 1.2, 5.2.6). */
#pragma once

#include "kind.h"

enum {
	BLOCK_IN = 0,
	BLOCK_OUT = 1,
	BLOCK_GET_ID = 8,
	BLOCK_DISCARD = 11,
	BLOCK_ZERO = 13,
};
enum { STATUS_OK, STATUS_IOERR, STATUS_UNSUPP, STATUS_NONE = 0xff };

#define BLOCK_RO BIT(5)
#define BLOCK_F_FLUSH BIT(9)
#define BLOCK_F_DISCARD BIT(13)
#define BLOCK_F_ZERO BIT(14)
#define BLOCK_FEATURES (INDIRECT_DESC | BLOCK_RO | BLOCK_F_FLUSH | BLOCK_F_DISCARD | BLOCK_F_ZERO)

struct block_header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};

/* A request of a type, with `length` bytes of data in a direction (0: none). */
struct block_header *block_request(struct request *request, uint32_t type, uint64_t sector,
                                   uint32_t length, enum direction direction);
uint8_t block_status(const struct request *request);

/* Read sector 0. */
void block_fill(const struct device *device, struct request *request);
enum outcome block_judge(const struct request *request, uint32_t length);
