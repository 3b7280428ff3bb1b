/* One operation on a file of the host, and the engines that carry operations out. */
#ifndef PV_IO_INTERNAL_H
#define PV_IO_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define PV_IO_FOREVER UINT64_MAX

enum pv_io_kind {
	PV_IO_READ,  /* into `iov` */
	PV_IO_WRITE, /* from `iov` */
	PV_IO_SYNC,  /* data, and what is needed to find it again, to stable storage */
	PV_IO_PUNCH, /* zero `length` bytes and give their room back */
	PV_IO_ZERO,  /* zero `length` bytes */
};

struct pv_io {
	enum pv_io_kind kind;
	uint32_t count; /* of iov */
	struct iovec *iov;
	uint64_t offset;
	uint64_t length;
	int64_t result; /* bytes moved, 0, or -errno */
	bool cached;    /* a read may find its data in memory, and pv_io_read_now can tell */
	struct pv_io *next;
};

/* Carry `io` out here and now; what `result` is to be. */
int64_t pv_io_run(int fd, const struct pv_io *io);

/* The same for a PV_IO_READ of what is in memory; -EAGAIN: it is not. */
int64_t pv_io_read_now(int fd, const struct pv_io *io);

/* Whether pv_io_read_now can tell for this file, and a read can find anything in memory. */
bool pv_io_is_cached(int fd);

/* fallocate(2)'s mode for PV_IO_PUNCH or PV_IO_ZERO. */
int pv_io_mode(enum pv_io_kind kind);

/* Carries operations out in any order. Used by one thread, which need not be the maker. */
struct pv_engine {
	const struct pv_engine_ops *ops;
};

struct pv_engine_ops {
	/* Begin `io`, which is the engine's until it is handed back; it may wait for the next `wait`
	 * to begin. -errno: it is not taken. */
	int (*start)(struct pv_engine *engine, struct pv_io *io);
	/* Return what is complete, a list in no order; when there is nothing, wait for something,
	 * for the kick descriptor or for `timeout_ns`. May return without any of these. */
	struct pv_io *(*wait)(struct pv_engine *engine, uint64_t timeout_ns);
	/* Nothing is in flight. */
	void (*free)(struct pv_engine *engine);
};

/* An engine on `fd`, which its `wait` leaves when `kick_fd`, an eventfd, is written; both borrowed.
 * -ENOMEM, -ENOSYS and -EPERM (no io_uring on this host), or what the system says. */
int pv_uring_new(int fd, int kick_fd, struct pv_engine **out);
int pv_pool_new(int fd, int kick_fd, struct pv_engine **out);

#endif
