/* What epoll(7) tells the thread of. */
#include <errno.h>
#include <sys/epoll.h>

#include "vsock/internal.h"

int pv_vsock_watch_fd(struct pv_vsock *vsock, int fd, uint64_t place)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = place};

	return epoll_ctl(vsock->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

bool pv_vsock_watch(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	bool waits = conn->held > 0;
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLRDHUP | EPOLLET | (waits ? (uint32_t)EPOLLOUT : 0),
		.data.u64 = PV_VSOCK_ON_CONN + (uint64_t)(conn - vsock->conns),
	};

	if (conn->watched && conn->waits_out == waits)
		return true;
	if (epoll_ctl(vsock->epoll_fd, conn->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, conn->fd,
	              &event) < 0)
		return false;
	conn->watched = true;
	conn->waits_out = waits;
	return true;
}
