/* One direction of a host file descriptor, read or written without blocking and without touching
 * the flags of the open file description, which a shell and other programs may share; or a ring
 * buffer in memory.
 *
 * - A terminal or a pipe is opened anew through /proc/self/fd, non-blocking.
 * - A socket is used with MSG_DONTWAIT.
 * - A descriptor that is already non-blocking, and a file (which never makes one wait for another
 *   program), is duplicated.
 * - What is left (the master of a pty, a terminal that may not be opened again) is polled before
 *   each small transfer. That could still block in a race, so `guarded` is set, and the transfer
 *   is the one place where the thread can be cancelled. */
#ifndef PV_STREAM_INTERNAL_H
#define PV_STREAM_INTERNAL_H

#include <stdint.h>
#include <sys/uio.h>

#include "ringbuf.h"

#define PV_STREAM_READ 0
#define PV_STREAM_WRITE 1

struct pv_stream {
	int fd; /* owned; -1: closed */
	struct pv_ringbuf *ringbuf; /* borrowed, takes what is written in place of `fd`; or NULL */
	uint8_t socket;
	uint8_t guarded;
	uint8_t pty_master; /* hangs up while nobody has the terminal open */
};

/* Open `stream` on borrowed `fd`; -1 makes a closed stream. -EBADF (not open that way). */
int pv_stream_open(struct pv_stream *stream, int fd, int direction);
/* The same of a socket that was accepted, in either direction: what it is need not be asked. */
int pv_stream_open_client(struct pv_stream *stream, int fd);

/* Which of the events of poll(2) there are now, and of those that come unasked. */
short pv_stream_look(const struct pv_stream *stream, short events);

/* Bytes moved, 0 at the end of input, -EAGAIN, or another -errno. `size` is at least 1.
 * SIGPIPE must be blocked or ignored in the calling thread. */
int64_t pv_stream_read(const struct pv_stream *stream, uint8_t *data, uint32_t size);
int64_t pv_stream_write(const struct pv_stream *stream, const uint8_t *data, uint32_t size);

/* The same for several pieces, one at least, that together have a byte at least. */
int64_t pv_stream_readv(const struct pv_stream *stream, const struct iovec *iov, uint32_t count);
int64_t pv_stream_writev(const struct pv_stream *stream, const struct iovec *iov, uint32_t count);

/* Close; a closed stream stays closed. */
void pv_stream_close(struct pv_stream *stream);

#endif
