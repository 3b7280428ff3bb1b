/* Packets of the socket device (virtio 1.2, 5.10.6). */
#pragma once

#include "kind.h"

#define SOCKET_HOST 2
#define SOCKET_STREAM 1
enum { SOCKET_REQUEST = 1, SOCKET_RST = 3, SOCKET_RW = 5, SOCKET_CREDIT_REQUEST = 7 };

struct __attribute__((packed, aligned(4))) socket_header {
	uint64_t from, to;
	uint32_t from_port, to_port;
	uint32_t length;
	uint16_t type, operation;
	uint32_t flags, room, taken;
};

/* The end of a connection that there is not, which calls for no answer. */
void socket_fill(const struct device *device, struct request *request);

/* Make that a request for a connection, which has to be answered. */
void socket_ask(const struct request *request);
