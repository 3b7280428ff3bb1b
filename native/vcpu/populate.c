#include "vcpu/memory.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "thread_internal.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define PIECE ((uint64_t)16 << 20) /* what a thread takes at a time: a multiple of most pages */
#define THREADS_MAX 16

struct work {
	char *start;
	uint64_t size;
	bool has_advice; /* the kernel knows MADV_POPULATE_WRITE */
	_Atomic uint64_t taken;
	_Atomic int result; /* the first -errno */
};

/* For kernels before 5.14: a write to each page that leaves it as it is. */
static void touch(char *start, uint64_t size)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	for (uint64_t at = 0; at < size; at += page)
		atomic_fetch_or((_Atomic char *)(start + at), 0);
}

static void fail(struct work *work, int error)
{
	int none = 0;

	atomic_compare_exchange_strong(&work->result, &none, -error);
}

static void populate_piece(struct work *work, char *start, uint64_t size)
{
	if (!work->has_advice) {
		touch(start, size);
		return;
	}
	while (madvise(start, size, MADV_POPULATE_WRITE) < 0) {
		if (errno == EINTR || errno == EAGAIN)
			continue;
		fail(work, errno);
		break;
	}
}

static void *populate(void *argument)
{
	struct work *work = argument;

	while (atomic_load(&work->result) == 0) {
		uint64_t at = atomic_fetch_add(&work->taken, PIECE);
		uint64_t size = work->size - at < PIECE ? work->size - at : PIECE;

		if (at >= work->size)
			break;
		populate_piece(work, work->start + at, size);
	}
	return NULL;
}

int pv_memory_populate(void *start, uint64_t size, uint32_t threads)
{
	struct work work = {
		.start = start,
		.size = size,
		.has_advice = madvise(NULL, 0, MADV_POPULATE_WRITE) == 0,
	};
	struct pv_thread others[THREADS_MAX];
	uint32_t count = 0;

	/* Without the threads that cannot be had it takes longer. */
	while (count + 1 < threads && count < THREADS_MAX)
		if (pv_thread_run(&others[count++], populate, &work) < 0) {
			count--;
			break;
		}
	populate(&work);
	while (count > 0)
		(void)pv_thread_wait(&others[--count], PV_FOREVER);
	return atomic_load(&work.result);
}
