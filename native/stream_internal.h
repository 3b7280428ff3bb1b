/* One direction of a host file descriptor, read or written without blocking and without touching
 * the flags of the open file description, which a shell and other programs may share.
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

#define PV_STREAM_READ 0
#define PV_STREAM_WRITE 1

struct pv_stream {
	int fd; /* owned; -1: closed */
	uint8_t socket;
	uint8_t guarded;
	uint8_t pty_master; /* hangs up while nobody has the terminal open */
};

/* Open `stream` on borrowed `fd`; -1 makes a closed stream. -EBADF (not open that way). */
int pv_stream_open(struct pv_stream *stream, int fd, int direction);

/* Bytes moved, 0 at the end of input, -EAGAIN, or another -errno. `size` is at least 1.
 * SIGPIPE must be blocked or ignored in the calling thread. */
int64_t pv_stream_read(const struct pv_stream *stream, uint8_t *data, uint32_t size);
int64_t pv_stream_write(const struct pv_stream *stream, const uint8_t *data, uint32_t size);

/* Close; a closed stream stays closed. */
void pv_stream_close(struct pv_stream *stream);

#endif
