/* Registers, bits and rings, as in virtio 1.2 (4.2.2, 2.7). */
#pragma once

#include <stdint.h>

enum {
	MAGIC_VALUE = 0x00,
	VERSION = 0x04,
	DEVICE_ID = 0x08,
	VENDOR_ID = 0x0c,
	DEVICE_FEATURES = 0x10,
	DEVICE_FEATURES_SEL = 0x14,
	DRIVER_FEATURES = 0x20,
	DRIVER_FEATURES_SEL = 0x24,
	QUEUE_SEL = 0x30,
	QUEUE_NUM_MAX = 0x34,
	QUEUE_NUM = 0x38,
	QUEUE_READY = 0x44,
	QUEUE_NOTIFY = 0x50,
	INTERRUPT_STATUS = 0x60,
	INTERRUPT_ACK = 0x64,
	STATUS = 0x70,
	QUEUE_DESC = 0x80,
	QUEUE_DRIVER = 0x90,
	QUEUE_DEVICE = 0xa0,
	SHM_SEL = 0xac,
	SHM_LENGTH = 0xb0,
	QUEUE_RESET = 0xc0,
	CONFIG_GENERATION = 0xfc,
	CONFIG = 0x100,
};

#define VIRTIO_MAGIC UINT32_C(0x74726976)

enum {
	ACKNOWLEDGE = 1,
	DRIVER = 2,
	DRIVER_OK = 4,
	FEATURES_OK = 8,
	NEEDS_RESET = 64,
	FAILED = 128,
};

enum { INTERRUPT_USED = 1, INTERRUPT_CONFIG = 2 };

enum { NET = 1, BLOCK = 2, CONSOLE = 3, ENTROPY = 4, BALLOON = 5, SOCKET = 19, FILES = 26 };

#define BIT(number) (UINT64_C(1) << (number))
#define INDIRECT_DESC BIT(28)
#define EVENT_IDX BIT(29)
#define VERSION_1 BIT(32)
#define RING_RESET BIT(40)

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

struct avail {
	uint16_t flags;
	volatile uint16_t idx;
	uint16_t ring[];
};

struct used_elem {
	uint32_t id;
	uint32_t length;
};

struct used {
	uint16_t flags;
	volatile uint16_t idx;
	volatile struct used_elem ring[];
};
