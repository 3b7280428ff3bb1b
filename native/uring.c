/* The engine that io_uring(7) is: operations and the wait for them are one system call.
 *
 * The kick descriptor is polled by the ring itself, again and again with one request, and never
 * read: each write to it is a completion. */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "block.h"
#include "io_internal.h"

#define SUBMISSIONS 128  /* prepared between two system calls */
#define COMPLETIONS 2048 /* more than one queue can have in flight */
#define NS_PER_S 1000000000

struct uring {
	struct pv_engine engine;
	struct io_uring ring;
	int kick_fd;
	bool enabled;
	bool polling; /* the kick descriptor */
};

/* The submission to fill in; full ones are handed over first. */
static struct io_uring_sqe *next_sqe(struct uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe && io_uring_submit(&u->ring) > 0)
		sqe = io_uring_get_sqe(&u->ring);
	return sqe;
}

/* The thread that uses the ring first is the only one that may: that spares locks in the kernel.
 * By hand, as the library of Debian 12 declares its function for this and does not export it. */
static int enable(struct uring *u)
{
	if (!u->enabled && syscall(SYS_io_uring_register, u->ring.ring_fd,
	                           IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
		return -errno;
	u->enabled = true;
	return 0;
}

static int start(struct pv_engine *engine, struct pv_io *io)
{
	struct uring *u = (struct uring *)engine;
	struct io_uring_sqe *sqe;
	int result = enable(u);

	if (result < 0)
		return result;
	sqe = next_sqe(u);
	if (!sqe)
		return -EBUSY;
	switch (io->kind) {
	case PV_IO_READ:
		io_uring_prep_readv(sqe, 0, io->iov, io->count, io->offset);
		break;
	case PV_IO_WRITE:
		io_uring_prep_writev(sqe, 0, io->iov, io->count, io->offset);
		break;
	case PV_IO_SYNC:
		io_uring_prep_fsync(sqe, 0, IORING_FSYNC_DATASYNC);
		break;
	case PV_IO_PUNCH:
	case PV_IO_ZERO:
		io_uring_prep_fallocate(sqe, 0, pv_io_mode(io->kind), (off_t)io->offset,
		                        (off_t)io->length);
		break;
	}
	sqe->flags |= IOSQE_FIXED_FILE; /* number 0 of the registered ones */
	io_uring_sqe_set_data(sqe, io);
	return 0;
}

static void poll_kick(struct uring *u)
{
	struct io_uring_sqe *sqe = u->polling ? NULL : next_sqe(u);

	if (!sqe)
		return;
	io_uring_prep_poll_multishot(sqe, u->kick_fd, POLLIN);
	io_uring_sqe_set_data(sqe, NULL);
	u->polling = true;
}

static struct pv_io *take(struct uring *u)
{
	struct io_uring_cqe *cqe;
	struct pv_io *done = NULL;
	unsigned head, count = 0;

	io_uring_for_each_cqe(&u->ring, head, cqe)
	{
		struct pv_io *io = io_uring_cqe_get_data(cqe);

		count++;
		if (cqe->user_data == LIBURING_UDATA_TIMEOUT)
			continue;
		if (!io) {
			u->polling = (cqe->flags & IORING_CQE_F_MORE) != 0;
			continue;
		}
		io->result = cqe->res;
		io->next = done;
		done = io;
	}
	io_uring_cq_advance(&u->ring, count);
	return done;
}

static struct pv_io *wait(struct pv_engine *engine, uint64_t timeout_ns)
{
	struct uring *u = (struct uring *)engine;
	struct __kernel_timespec limit = {
		.tv_sec = (int64_t)(timeout_ns / NS_PER_S),
		.tv_nsec = (long long)(timeout_ns % NS_PER_S),
	};
	struct io_uring_cqe *cqe;

	if (enable(u) < 0)
		return NULL;
	poll_kick(u);
	if (timeout_ns == PV_IO_FOREVER)
		io_uring_submit_and_wait(&u->ring, 1);
	else
		io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &limit, NULL);
	return take(u);
}

static void uring_free(struct pv_engine *engine)
{
	struct uring *u = (struct uring *)engine;

	io_uring_queue_exit(&u->ring);
	free(u);
}

static const struct pv_engine_ops OPS = {.start = start, .wait = wait, .free = uring_free};

/* With all that makes it cheaper for one thread, or what this kernel has of it. */
static int make_ring(struct io_uring *ring)
{
	static const unsigned FLAGS[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* Linux 6.1 */
		IORING_SETUP_COOP_TASKRUN,                               /* Linux 5.19 */
		0,
	};
	int result = -EINVAL;

	for (unsigned i = 0; result == -EINVAL && i < sizeof(FLAGS) / sizeof(FLAGS[0]); i++) {
		struct io_uring_params params = {
			.flags = FLAGS[i] | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE,
			.cq_entries = COMPLETIONS,
		};
		result = io_uring_queue_init_params(SUBMISSIONS, ring, &params);
	}
	return result;
}

int pv_uring_new(int fd, int kick_fd, struct pv_engine **out)
{
	struct uring *u = calloc(1, sizeof(*u));
	int result;

	*out = NULL;
	if (!u)
		return -ENOMEM;
	u->engine.ops = &OPS;
	u->kick_fd = kick_fd;
	result = make_ring(&u->ring);
	if (result < 0) {
		free(u);
		return result;
	}
	result = io_uring_register_files(&u->ring, &fd, 1);
	if (result < 0) {
		uring_free(&u->engine);
		return result;
	}
	*out = &u->engine;
	return 0;
}

int pv_uring_probe(void)
{
	struct io_uring ring;
	int result = make_ring(&ring);

	if (result == 0)
		io_uring_queue_exit(&ring);
	return result;
}
