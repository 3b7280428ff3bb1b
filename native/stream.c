#include "stream_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* PIPE_BUF's floor would fit a pipe; a terminal says "writable" when it has room for less. */
#define GUARDED_MAX 64

static bool is_pty_master(int fd)
{
	unsigned int number;

	return ioctl(fd, TIOCGPTN, &number) == 0;
}

/* Whether a transfer can make one wait for another program: not with files and plain devices. */
static bool may_wait(int fd, mode_t mode)
{
	if (S_ISREG(mode) || S_ISBLK(mode) || S_ISSOCK(mode))
		return false;
	return !S_ISCHR(mode) || isatty(fd);
}

static int open_anew(int fd, int access_mode)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, access_mode | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

int pv_stream_open(struct pv_stream *stream, int fd, int direction)
{
	int access_mode = direction == PV_STREAM_WRITE ? O_WRONLY : O_RDONLY;
	struct stat status;
	int flags;

	*stream = (struct pv_stream){.fd = -1};
	if (fd < 0)
		return 0;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fstat(fd, &status) < 0)
		return -errno;
	if ((flags & O_ACCMODE) != access_mode && (flags & O_ACCMODE) != O_RDWR)
		return -EBADF;

	stream->socket = S_ISSOCK(status.st_mode);
	stream->pty_master = S_ISCHR(status.st_mode) && is_pty_master(fd);
	if (may_wait(fd, status.st_mode) && !(flags & O_NONBLOCK)) {
		/* To open a pty's master again would make another pty. */
		if (!stream->pty_master)
			stream->fd = open_anew(fd, access_mode);
		stream->guarded = stream->fd < 0;
	}
	if (stream->fd < 0)
		stream->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return stream->fd < 0 ? -errno : 0;
}

int pv_stream_open_client(struct pv_stream *stream, int fd)
{
	*stream = (struct pv_stream){.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0), .socket = true};
	return stream->fd < 0 ? -errno : 0;
}

short pv_stream_look(const struct pv_stream *stream, short events)
{
	const struct timespec now = {0};
	struct pollfd pollfd = {.fd = stream->fd, .events = events};

	return ppoll(&pollfd, 1, &now, NULL) == 1 ? pollfd.revents : 0;
}

static int64_t result(ssize_t count)
{
	if (count >= 0)
		return count;
	return errno == EINTR ? -EAGAIN : -errno;
}

/* A transfer that might block after all, and is where the thread can be cancelled. */
static int64_t guarded(const struct pv_stream *stream, void *data, size_t size, bool in)
{
	ssize_t count;
	int state;

	if (!pv_stream_look(stream, in ? POLLIN : POLLOUT))
		return -EAGAIN;
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
	count = in ? read(stream->fd, data, size)
	           : write(stream->fd, data, size < GUARDED_MAX ? size : GUARDED_MAX);
	pthread_setcancelstate(state, NULL);
	return result(count);
}

static const struct iovec *first(const struct iovec *iov)
{
	while (iov->iov_len == 0)
		iov++;
	return iov;
}

static int64_t keep(struct pv_ringbuf *ringbuf, const struct iovec *iov, uint32_t count)
{
	int64_t bytes = 0;

	for (uint32_t i = 0; i < count; i++) {
		pv_ringbuf_write(ringbuf, iov[i].iov_base, iov[i].iov_len);
		bytes += (int64_t)iov[i].iov_len;
	}
	return bytes;
}

int64_t pv_stream_readv(const struct pv_stream *stream, const struct iovec *iov, uint32_t count)
{
	struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};

	if (stream->socket)
		return result(recvmsg(stream->fd, &message, MSG_DONTWAIT));
	if (stream->guarded)
		return guarded(stream, first(iov)->iov_base, first(iov)->iov_len, true);
	return result(readv(stream->fd, iov, (int)count));
}

int64_t pv_stream_writev(const struct pv_stream *stream, const struct iovec *iov, uint32_t count)
{
	struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};

	if (stream->ringbuf)
		return keep(stream->ringbuf, iov, count);
	if (stream->socket)
		return result(sendmsg(stream->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
	if (stream->guarded)
		return guarded(stream, first(iov)->iov_base, first(iov)->iov_len, false);
	return result(writev(stream->fd, iov, (int)count));
}

int64_t pv_stream_read(const struct pv_stream *stream, uint8_t *data, uint32_t size)
{
	const struct iovec iov = {data, size};

	return pv_stream_readv(stream, &iov, 1);
}

int64_t pv_stream_write(const struct pv_stream *stream, const uint8_t *data, uint32_t size)
{
	const struct iovec iov = {(void *)(uintptr_t)data, size};

	return pv_stream_writev(stream, &iov, 1);
}

void pv_stream_close(struct pv_stream *stream)
{
	if (stream->fd >= 0)
		close(stream->fd);
	stream->fd = -1;
	stream->ringbuf = NULL;
}
