/* The engine that io_uring(7) is: operations and the wait for them are one system call.
 *
 * What is watched is polled by the ring itself, again and again with one request: each write to an
 * eventfd is a completion, and so is each time that another descriptor becomes ready. */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "iothread/io_internal.h"
#include "iothread/iothread.h"
#include "sandbox/filter.h"

#define SUBMISSIONS 128  /* prepared between two system calls */
#define COMPLETIONS 2048 /* more than one queue can have in flight; the kernel keeps what is beyond */
#define NS_PER_S 1000000000
/* The data of a submission: an operation; or a watch and one of these bits. */
#define WATCH UINT64_C(1)
#define UNWATCH UINT64_C(2)

struct uring {
	struct pv_engine engine;
	struct io_uring ring;
	struct pv_io *backlog; /* what the ring had no room for */
	int error; /* why it cannot be used */
};

/* The submission to fill in; full ones are handed over first. */
static struct io_uring_sqe *next_sqe(struct uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe && io_uring_submit(&u->ring) > 0)
		sqe = io_uring_get_sqe(&u->ring);
	return sqe;
}

/* Have a ring that does no more than disks and NICs ask of it: what is asked in it is no call that a
 * sandbox sees. Linux 5.10. */
static int restrict_to(struct io_uring *ring)
{
	static const uint8_t OPERATIONS[] = {
		IORING_OP_READ,      IORING_OP_WRITE,    IORING_OP_READV,
		IORING_OP_WRITEV,    IORING_OP_FSYNC,    IORING_OP_FALLOCATE,
		IORING_OP_POLL_ADD,  IORING_OP_TIMEOUT,  IORING_OP_ASYNC_CANCEL,
	};
	struct io_uring_restriction allowed[sizeof(OPERATIONS)] = {0};

	for (unsigned i = 0; i < sizeof(OPERATIONS); i++) {
		allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
		allowed[i].sqe_op = OPERATIONS[i];
	}
	return syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, allowed,
	               sizeof(OPERATIONS)) < 0
	               ? -errno
	               : 0;
}

/* The thread that turns the ring on is the only one that may use it: that spares locks in the kernel.
 * By hand, as the library of Debian 12 declares its function for this and does not export it. */
static void begin(struct pv_engine *engine)
{
	struct uring *u = (struct uring *)engine;

	if (syscall(SYS_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
	            0) < 0)
		u->error = -errno;
}

/* One segment, as most requests have, is no list that the kernel has to copy. */
static void prepare_transfer(struct io_uring_sqe *sqe, const struct pv_io *io)
{
	const struct iovec *one = io->count == 1 ? io->iov : NULL;
	bool is_read = io->kind == PV_IO_READ;

	if (one && is_read)
		io_uring_prep_read(sqe, io->fd, one->iov_base, (unsigned)one->iov_len, io->offset);
	else if (one)
		io_uring_prep_write(sqe, io->fd, one->iov_base, (unsigned)one->iov_len, io->offset);
	else if (is_read)
		io_uring_prep_readv(sqe, io->fd, io->iov, io->count, io->offset);
	else
		io_uring_prep_writev(sqe, io->fd, io->iov, io->count, io->offset);
}

static void prepare(struct io_uring_sqe *sqe, struct pv_io *io)
{
	switch (io->kind) {
	case PV_IO_READ:
	case PV_IO_WRITE:
		prepare_transfer(sqe, io);
		break;
	case PV_IO_SYNC:
		io_uring_prep_fsync(sqe, io->fd, IORING_FSYNC_DATASYNC);
		break;
	case PV_IO_PUNCH:
	case PV_IO_ZERO:
		io_uring_prep_fallocate(sqe, io->fd, pv_io_mode(io->kind), (off_t)io->offset,
		                        (off_t)io->length);
		break;
	}
	io_uring_sqe_set_data(sqe, io);
}

static int start(struct pv_engine *engine, struct pv_io *io)
{
	struct uring *u = (struct uring *)engine;
	struct io_uring_sqe *sqe;

	if (u->error < 0)
		return u->error;
	sqe = next_sqe(u);
	if (sqe) {
		prepare(sqe, io);
	} else {
		io->next = u->backlog;
		u->backlog = io;
	}
	return 0;
}

/* What is left goes to the ring when that has room again, which a wait makes. */
static void start_backlog(struct uring *u)
{
	struct pv_io *io = u->backlog;

	u->backlog = NULL;
	while (io) {
		struct pv_io *next = io->next;

		(void)start(&u->engine, io);
		io = next;
	}
}

static uint64_t data_of(struct pv_watch *watch, uint64_t bit)
{
	return (uint64_t)(uintptr_t)watch | bit;
}

static void arm(struct uring *u)
{
	for (struct pv_watch *watch = u->engine.watches; watch; watch = watch->next) {
		bool rests = watch->armed || watch->leaving || watch->over ||
		             (watch->once && !watch->wanted);
		struct io_uring_sqe *sqe = rests ? NULL : next_sqe(u);
		unsigned events = watch->events ? (unsigned)watch->events : POLLIN;

		if (!sqe)
			continue;
		if (watch->once)
			io_uring_prep_poll_add(sqe, watch->fd, events);
		else
			io_uring_prep_poll_multishot(sqe, watch->fd, events);
		io_uring_sqe_set_data64(sqe, data_of(watch, WATCH));
		watch->armed = true;
	}
}

/* Until both the poll has ended and the answer to its cancellation is there. */
static bool unwatch(struct pv_engine *engine, struct pv_watch *watch)
{
	struct uring *u = (struct uring *)engine;
	struct io_uring_sqe *sqe;

	if (!watch->armed && !watch->leaving) {
		pv_engine_forget(engine, watch);
		return true;
	}
	sqe = watch->leaving ? NULL : next_sqe(u);
	if (sqe) {
		io_uring_prep_cancel64(sqe, data_of(watch, WATCH), 0);
		io_uring_sqe_set_data64(sqe, data_of(watch, UNWATCH));
		watch->leaving = true;
	}
	return false;
}

static void take_watch(const struct io_uring_cqe *cqe)
{
	struct pv_watch *watch = (void *)(uintptr_t)(cqe->user_data & ~(WATCH | UNWATCH));

	if (cqe->user_data & UNWATCH) {
		watch->leaving = false;
		return;
	}
	watch->armed = (cqe->flags & IORING_CQE_F_MORE) != 0;
	if (cqe->res < 0)
		return;
	watch->wanted = false;
	watch->seen |= (short)cqe->res;
	/* It would be so for ever. */
	watch->over = (cqe->res & (POLLERR | POLLHUP | POLLNVAL)) != 0;
}

static struct pv_io *take(struct uring *u)
{
	struct io_uring_cqe *cqe;
	struct pv_io *done = NULL;
	unsigned head, count = 0;

	io_uring_for_each_cqe(&u->ring, head, cqe)
	{
		struct pv_io *io;

		count++;
		if (cqe->user_data == LIBURING_UDATA_TIMEOUT)
			continue;
		if (cqe->user_data & (WATCH | UNWATCH)) {
			take_watch(cqe);
			continue;
		}
		io = io_uring_cqe_get_data(cqe);
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
	struct pv_io *done;

	if (u->error < 0)
		return NULL;
	arm(u);
	if (timeout_ns == 0)
		io_uring_submit_and_get_events(&u->ring);
	else if (timeout_ns == PV_FOREVER)
		io_uring_submit_and_wait(&u->ring, 1);
	else
		io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &limit, NULL);
	done = take(u);
	start_backlog(u);
	return done;
}

static void uring_free(struct pv_engine *engine)
{
	struct uring *u = (struct uring *)engine;

	io_uring_queue_exit(&u->ring);
	free(u);
}

static const struct pv_engine_ops OPS = {
	.begin = begin, .start = start, .wait = wait, .unwatch = unwatch, .free = uring_free};

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
	if (result == 0 && pv_sandbox_mode() != PV_SANDBOX_OFF) {
		result = restrict_to(ring);
		if (result < 0)
			io_uring_queue_exit(ring);
	}
	return result;
}

int pv_uring_new(struct pv_engine **out)
{
	struct uring *u = calloc(1, sizeof(*u));
	int result;

	*out = NULL;
	if (!u)
		return -ENOMEM;
	u->engine.ops = &OPS;
	result = make_ring(&u->ring);
	if (result < 0) {
		free(u);
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
