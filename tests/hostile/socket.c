#include "socket.h"

void socket_fill(const struct device *device, struct request *request)
{
	struct socket_header *header = request_add(request, sizeof(*header), OUT);

	header->from = get(device, CONFIG);
	header->to = SOCKET_HOST;
	header->from_port = 1000;
	header->to_port = 2000;
	header->type = SOCKET_STREAM;
	header->operation = SOCKET_RST;
}

void socket_ask(const struct request *request)
{
	struct socket_header *header = request->segments[0].at;

	header->operation = SOCKET_REQUEST;
}
