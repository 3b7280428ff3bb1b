/* How connections begin: a client of the host's says where it wants to, or the guest connects to a
 * server of the host's. The words are those of Firecracker's socket device. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vsock/internal.h"

#define CLIENTS 16 /* accepted in a row */
#define PORT_FIRST 0x40000000 /* of the host's ends of clients' connections */

static const char CONNECT[] = "CONNECT ";

/* One client more than may be silent takes the place of the one that is so for the longest time. */
static void make_room_for_greeter(struct pv_vsock *vsock)
{
	struct pv_vsock_conn *oldest = NULL;

	if (vsock->greeters < PV_VSOCK_GREETERS)
		return;
	for (uint32_t i = 0; i < vsock->used; i++) {
		struct pv_vsock_conn *conn = &vsock->conns[i];

		if (conn->state == PV_VSOCK_GREETING &&
		    (!oldest || conn->deadline < oldest->deadline))
			oldest = conn;
	}
	if (!oldest)
		return;
	pv_vsock_count(vsock, PV_VSOCK_REFUSED, 1);
	pv_vsock_drop(vsock, oldest);
}

static bool accept_one(struct pv_vsock *vsock)
{
	struct pv_vsock_conn *conn;
	int fd = accept4(vsock->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		vsock->clients = false;
		/* Descriptors or memory may be there later, of which no edge tells. */
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			vsock->retry_at = pv_deadline(PV_VSOCK_S);
		else if (errno != EAGAIN)
			vsock->clients = true;
		return false;
	}
	make_room_for_greeter(vsock);
	conn = pv_vsock_take(vsock, PV_VSOCK_GREETING);
	if (!conn) {
		close(fd);
		return false;
	}
	conn->fd = fd;
	pv_vsock_set_deadline(vsock, conn, PV_VSOCK_GREETING_NS);
	if (pv_vsock_watch(vsock, conn))
		pv_vsock_greet(vsock, conn);
	else
		pv_vsock_drop(vsock, conn);
	return true;
}

void pv_vsock_accept(struct pv_vsock *vsock)
{
	for (unsigned i = 0; i < CLIENTS && vsock->clients && pv_vsock_has_room(vsock); i++)
		if (!accept_one(vsock))
			return;
}

/* A port of the host's that no connection has to that port of the guest's. */
static uint32_t choose_port(struct pv_vsock *vsock, uint32_t guest_port)
{
	do
		vsock->next_port = vsock->next_port < PORT_FIRST || vsock->next_port >= UINT32_MAX - 1
		                         ? PORT_FIRST
		                         : vsock->next_port + 1;
	while (pv_vsock_find(vsock, guest_port, vsock->next_port));
	return vsock->next_port;
}

/* The number that all of `text` is; false: it is none of 32 bits, or VMADDR_PORT_ANY. */
static bool read_port(const char *text, size_t length, uint32_t *port)
{
	uint64_t value = 0;

	if (length == 0 || length > 10)
		return false;
	for (size_t i = 0; i < length; i++) {
		if (text[i] < '0' || text[i] > '9')
			return false;
		value = value * 10 + (uint64_t)(text[i] - '0');
	}
	*port = (uint32_t)value;
	return value < UINT32_MAX;
}

static bool understand(const char *line, size_t length, uint32_t *port)
{
	const size_t word = sizeof(CONNECT) - 1;

	return length > word && memcmp(line, CONNECT, word) == 0 &&
	       read_port(line + word, length - word, port);
}

static void refuse(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	pv_vsock_count(vsock, PV_VSOCK_REFUSED, 1);
	pv_vsock_drop(vsock, conn);
}

static ssize_t receive(const struct pv_vsock_conn *conn, char *line, size_t size, int flags)
{
	struct iovec iov = {line, size};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	return recvmsg(conn->fd, &message, flags | MSG_DONTWAIT);
}

/* No byte behind the line is taken, for they are the guest's. */
void pv_vsock_greet(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	char line[PV_VSOCK_LINE_MAX];
	ssize_t bytes = receive(conn, line, sizeof(line), MSG_PEEK);
	const char *end = bytes > 0 ? memchr(line, '\n', (size_t)bytes) : NULL;
	size_t length = end ? (size_t)(end - line) : 0;
	uint32_t port;

	if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (!end && bytes > 0 && bytes < (ssize_t)sizeof(line) && !conn->ending)
		return;
	if (!end || !understand(line, length, &port) ||
	    receive(conn, line, length + 1, 0) != (ssize_t)length + 1) {
		refuse(vsock, conn);
		return;
	}
	pv_vsock_name(vsock, conn, port, choose_port(vsock, port));
	pv_vsock_enter(vsock, conn, PV_VSOCK_REQUESTED);
	pv_vsock_set_deadline(vsock, conn, PV_VSOCK_REQUEST_NS);
	conn->owed = PV_VSOCK_OWES_REQUEST;
	pv_vsock_enqueue(vsock, conn);
}

static void open_both(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	pv_vsock_enter(vsock, conn, PV_VSOCK_OPEN);
	pv_vsock_set_deadline(vsock, conn, 0);
	conn->readable = true;
	pv_vsock_enqueue(vsock, conn);
}

void pv_vsock_on_response(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	char line[PV_VSOCK_LINE_MAX];
	int length = snprintf(line, sizeof(line), "OK %u\n", conn->host_port);
	struct iovec iov = {line, (size_t)length};
	const struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (sendmsg(conn->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) != length) {
		pv_vsock_abort(vsock, conn);
		return;
	}
	open_both(vsock, conn);
	pv_vsock_count(vsock, PV_VSOCK_OF_HOST, 1);
}

/* 0; -EAGAIN: the server has more clients than it takes; another -errno: there is none. */
static int reach(const struct pv_vsock *vsock, int fd, uint32_t port)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int result;

	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s_%u", vsock->path, port);
	do
		result = connect(fd, (const struct sockaddr *)&address, sizeof(address));
	while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : 0;
}

void pv_vsock_knock(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	int result = reach(vsock, conn->fd, conn->host_port);

	if (result == -EAGAIN)
		return;
	if (result < 0 || !pv_vsock_watch(vsock, conn)) {
		pv_vsock_abort(vsock, conn);
		return;
	}
	conn->owed = PV_VSOCK_OWES_RESPONSE;
	open_both(vsock, conn);
	pv_vsock_count(vsock, PV_VSOCK_OF_GUEST, 1);
}

void pv_vsock_on_request(struct pv_vsock *vsock, const struct virtio_vsock_hdr *header)
{
	struct pv_vsock_conn *conn = pv_vsock_take(vsock, PV_VSOCK_KNOCKING);
	int fd = conn ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;

	if (fd < 0) {
		if (conn)
			pv_vsock_drop(vsock, conn);
		pv_vsock_count(vsock, PV_VSOCK_REFUSED, 1);
		pv_vsock_reply_rst(vsock, header);
		return;
	}
	conn->fd = fd;
	conn->peer_room = header->buf_alloc;
	pv_vsock_name(vsock, conn, header->src_port, header->dst_port);
	pv_vsock_set_deadline(vsock, conn, PV_VSOCK_KNOCK_NS);
	pv_vsock_knock(vsock, conn);
}
