/* One operation on a file of the host, and the engines that carry operations out. */
#ifndef PV_IO_INTERNAL_H
#define PV_IO_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "thread_internal.h"

enum pv_io_kind {
	PV_IO_READ,  /* into `iov` */
	PV_IO_WRITE, /* from `iov` */
	PV_IO_SYNC,  /* data, and what is needed to find it again, to stable storage */
	PV_IO_PUNCH, /* zero `length` bytes and give their room back */
	PV_IO_ZERO,  /* zero `length` bytes */
};

struct pv_member;

struct pv_io {
	struct pv_member *owner; /* who gets it back */
	const char *device;      /* by its name, NULL or "": of nobody in particular */
	enum pv_io_kind kind;
	uint32_t count; /* of iov */
	struct iovec *iov;
	uint64_t offset;
	uint64_t length;
	int fd;
	bool cached;    /* a read may find its data in memory, and pv_io_read_now can tell */
	int64_t result; /* bytes moved, 0, or -errno */
	struct pv_io *next;
};

/* Carry `io` out here and now; what `result` is to be. */
int64_t pv_io_run(const struct pv_io *io);

/* The same for `size` bytes of one buffer. */
int64_t pv_io_read(int fd, void *data, size_t size, uint64_t offset);
int64_t pv_io_write(int fd, const void *data, size_t size, uint64_t offset);

/* The same for a PV_IO_READ of what is in memory; -EAGAIN: it is not. */
int64_t pv_io_read_now(const struct pv_io *io);

/* Whether pv_io_read_now can tell for this file, and a read can find anything in memory. */
bool pv_io_is_cached(int fd);

/* fallocate(2)'s mode for PV_IO_PUNCH or PV_IO_ZERO. */
int pv_io_mode(enum pv_io_kind kind);

/* A descriptor, borrowed, that ends an engine's wait: an eventfd with every write, any other each
 * time that it becomes ready; being so from the first counts, too. The engine never reads it. */
struct pv_watch {
	int fd;
	short events; /* of poll(2), of which `seen` tells; 0: POLLIN, of which nothing does */
	short seen;   /* until its owner clears it; POLLERR, POLLHUP and POLLNVAL come unasked, once */
	bool once;    /* once each time that its owner sets `wanted` */
	bool wanted;
	bool armed; /* the engine's from here on */
	bool added;
	bool leaving;
	bool over;
	struct pv_watch *next;
};

/* Carries operations out in any order. Used by one thread, which need not be the maker. */
struct pv_engine {
	const struct pv_engine_ops *ops;
	struct pv_watch *watches;
};

struct pv_engine_ops {
	bool plain_calls; /* and no ring: its user's sandbox is another one */
	/* What its user does first, before it takes its list of calls; NULL: nothing. */
	void (*begin)(struct pv_engine *engine);
	/* Begin `io`, which is the engine's until it is handed back; it may wait for the next `wait`
	 * to begin. -errno: it is not taken. */
	int (*start)(struct pv_engine *engine, struct pv_io *io);
	/* Return what is complete, a list in no order; when there is nothing, wait for something,
	 * for what is watched or for `timeout_ns`, not at all with 0. May return without any of
	 * these. */
	struct pv_io *(*wait)(struct pv_engine *engine, uint64_t timeout_ns);
	/* Watch it no more. True: it is the caller's again; false: ask again after a `wait`. */
	bool (*unwatch)(struct pv_engine *engine, struct pv_watch *watch);
	/* Nothing is in flight. */
	void (*free)(struct pv_engine *engine);
};

/* Watch `watch` from the next `wait` on; what was written before counts too. */
void pv_engine_watch(struct pv_engine *engine, struct pv_watch *watch);
/* For `unwatch`: take it off the list. */
void pv_engine_forget(struct pv_engine *engine, struct pv_watch *watch);

/* -ENOMEM, -ENOSYS and -EPERM (no io_uring on this host), or what the system says. */
typedef int pv_engine_make(struct pv_engine **out);
pv_engine_make pv_uring_new;
pv_engine_make pv_pool_new;

#endif
