#include "iothread/io_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

int pv_io_mode(enum pv_io_kind kind)
{
	return FALLOC_FL_KEEP_SIZE |
	       (kind == PV_IO_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

int64_t pv_io_run(const struct pv_io *io)
{
	int64_t result = -EINVAL;

	switch (io->kind) {
	case PV_IO_READ:
		result = preadv2(io->fd, io->iov, (int)io->count, (off_t)io->offset, 0);
		break;
	case PV_IO_WRITE:
		result = pwritev2(io->fd, io->iov, (int)io->count, (off_t)io->offset, 0);
		break;
	case PV_IO_SYNC:
		result = fdatasync(io->fd);
		break;
	case PV_IO_PUNCH:
	case PV_IO_ZERO:
		result = fallocate(io->fd, pv_io_mode(io->kind), (off_t)io->offset,
		                   (off_t)io->length);
		break;
	}
	return result < 0 ? -errno : result;
}

int64_t pv_io_read_now(const struct pv_io *io)
{
	int64_t result = preadv2(io->fd, io->iov, (int)io->count, (off_t)io->offset, RWF_NOWAIT);

	return result < 0 ? -errno : result;
}

int64_t pv_io_read(int fd, void *data, size_t size, uint64_t offset)
{
	struct iovec iov = {data, size};
	const struct pv_io io = {
		.kind = PV_IO_READ, .fd = fd, .iov = &iov, .count = 1, .offset = offset};

	return pv_io_run(&io);
}

int64_t pv_io_write(int fd, const void *data, size_t size, uint64_t offset)
{
	struct iovec iov = {(void *)(uintptr_t)data, size};
	const struct pv_io io = {
		.kind = PV_IO_WRITE, .fd = fd, .iov = &iov, .count = 1, .offset = offset};

	return pv_io_run(&io);
}

bool pv_io_is_cached(int fd)
{
	char byte;
	struct iovec iov = {&byte, 1};
	const struct pv_io io = {.fd = fd, .iov = &iov, .count = 1};
	int flags = fcntl(fd, F_GETFL);
	int64_t result;

	if (flags < 0 || (flags & O_DIRECT) != 0)
		return false;
	result = pv_io_read_now(&io);
	return result >= 0 || result == -EAGAIN;
}

void pv_engine_watch(struct pv_engine *engine, struct pv_watch *watch)
{
	watch->armed = watch->added = watch->leaving = watch->over = false;
	watch->seen = 0;
	watch->next = engine->watches;
	engine->watches = watch;
}

void pv_engine_forget(struct pv_engine *engine, struct pv_watch *watch)
{
	struct pv_watch **place = &engine->watches;

	while (*place != watch)
		place = &(*place)->next;
	*place = watch->next;
}
