#include "virtio/vacant.h"

#include <errno.h>
#include <linux/fuse.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "sandbox/filter.h"
#include "thread_internal.h"
#include "virtio/iov_internal.h"
#include "virtio/irq.h"
#include "virtio/virtqueue.h"

/* What is answered of a queue before others have their turn. */
#define BATCH 128
#define BATCH_BYTES (16 * 1024 * 1024)

struct pv_vacant {
	enum pv_vacant_kind kind;
	struct pv_virtio_irq *irq;
	struct pv_thread thread;
	bool broken;
	uint32_t count;
	struct pv_queue queues[PV_VACANT_QUEUES];
	struct pollfd fds[PV_VACANT_QUEUES + 1]; /* the kicks, then the end */
	struct pv_chain chain;
};

static void break_device(struct pv_vacant *v, const char *why)
{
	v->broken = true;
	pv_virtio_irq_broken(v->irq, why);
}

/* Every byte that may be is written, so that the used length takes in the last, which is the
 * status; of a buffer larger than a driver has for one request, only the beginning. */
static uint32_t fail_block(const struct pv_chain *chain)
{
	const struct iovec *writable = &chain->iov[chain->readable];
	const struct iovec *last = &writable[chain->writable - 1];
	uint64_t data = chain->writable_bytes - 1;
	bool fits = data <= PV_IOV_CLEAR_BYTES;

	pv_iov_clear(writable, chain->writable, fits ? data : PV_IOV_CLEAR_BYTES);
	((uint8_t *)last->iov_base)[last->iov_len - 1] = VIRTIO_BLK_S_IOERR;
	return fits ? (uint32_t)chain->writable_bytes : PV_IOV_CLEAR_BYTES;
}

/* Of requests that are answered at all, the header says so; the others (FORGET) have no room. */
static uint32_t fail_fs(const struct pv_chain *chain)
{
	struct fuse_in_header in;
	struct fuse_out_header out = {.len = sizeof(out), .error = -ENOTCONN};

	if (pv_iov_gather(chain->iov, chain->readable, 0, &in, sizeof(in)) < sizeof(in))
		return 0;
	out.unique = in.unique;
	return (uint32_t)pv_iov_scatter(&chain->iov[chain->readable], chain->writable, 0, &out,
	                                sizeof(out));
}

/* Answer the next request; the bytes of its buffers, 0: there is none to be answered. */
static uint64_t answer(struct pv_vacant *v, struct pv_virtqueue *ring)
{
	int result = v->broken ? 0 : pv_virtqueue_pop(ring, &v->chain);

	if (result < 0)
		break_device(v, pv_virtqueue_error(ring));
	if (result <= 0)
		return 0;
	if (v->kind == PV_VACANT_BLOCK && v->chain.writable == 0) {
		break_device(v, "a block request without a status byte");
		return 0;
	}
	pv_virtqueue_push(ring, v->chain.head,
	                  v->kind == PV_VACANT_FS ? fail_fs(&v->chain) : fail_block(&v->chain));
	return v->chain.readable_bytes + v->chain.writable_bytes;
}

/* Answer what there is, up to the budget; true: there may be more. */
static bool serve(struct pv_vacant *v, struct pv_virtqueue *ring)
{
	uint64_t bytes = 0, more = 1;

	pv_virtqueue_disable_kicks(ring);
	for (uint32_t i = 0; i < BATCH && bytes < BATCH_BYTES && more > 0; i++)
		bytes += more = answer(v, ring);
	pv_virtqueue_publish(ring);
	if (pv_virtqueue_needs_notify(ring))
		pv_virtio_irq_used(v->irq);
	return !v->broken && (more > 0 || pv_virtqueue_enable_kicks(ring));
}

static void *run(void *argument)
{
	struct pv_vacant *v = argument;
	eventfd_t value;

	pv_thread_is(PV_SANDBOX_VACANT, "vacant", pv_virtio_irq_name(v->irq));
	while (!pv_thread_is_to_end(&v->thread)) {
		bool more = false;

		for (uint32_t i = 0; i < v->count; i++) {
			(void)eventfd_read(v->queues[i].kick_fd, &value);
			more |= serve(v, v->queues[i].ring);
		}
		if (!more)
			(void)ppoll(v->fds, v->count + 1, NULL, NULL);
	}
	return NULL;
}

static void free_all(struct pv_vacant *v)
{
	close(v->fds[v->count].fd);
	free(v);
}

int pv_vacant_start(enum pv_vacant_kind kind, const struct pv_queue *queues, uint32_t count,
                    struct pv_virtio_irq *irq, struct pv_vacant **out)
{
	struct pv_vacant *v;
	int end_fd, result;

	*out = NULL;
	if (count == 0 || count > PV_VACANT_QUEUES)
		return -EINVAL;
	v = calloc(1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (end_fd < 0) {
		result = -errno;
		free(v);
		return result;
	}
	v->kind = kind;
	v->irq = irq;
	v->count = count;
	memcpy(v->queues, queues, count * sizeof(queues[0]));
	for (uint32_t i = 0; i < count; i++)
		v->fds[i] = (struct pollfd){.fd = queues[i].kick_fd, .events = POLLIN};
	v->fds[count] = (struct pollfd){.fd = end_fd, .events = POLLIN};
	result = pv_thread_run(&v->thread, run, v);
	if (result < 0)
		free_all(v);
	else
		*out = v;
	return result;
}

int pv_vacant_stop(struct pv_vacant *v, uint64_t timeout_ns)
{
	if (!v)
		return 0;
	pv_thread_ask(&v->thread);
	(void)eventfd_write(v->fds[v->count].fd, 1);
	if (pv_thread_wait(&v->thread, pv_deadline(timeout_ns)) < 0)
		return -ETIMEDOUT;
	free_all(v);
	return 0;
}

int pv_vacant_drain(struct pv_vacant *v, uint64_t timeout_ns)
{
	if (!v)
		return 0;
	if (pv_thread_pause(&v->thread, v->fds[v->count].fd, timeout_ns) < 0)
		return -ETIMEDOUT;
	free_all(v);
	return 0;
}
