/* Guest memory as the data path sees it: which guest-physical addresses are RAM, and where the
 * host has them mapped. Built before the devices start; nothing changes it after that, so any
 * number of threads may look addresses up. */
#ifndef PV_MEMORY_H
#define PV_MEMORY_H

#include <stdint.h>

#define PV_MEMORY_REGIONS 16
#define PV_MEMORY_FILES 130 /* a file for each of 128 nodes, one of them in two pieces */

struct pv_memory;

/* Guest memory that another process can map: in the file `fd` from `offset` on. */
struct pv_memory_file {
	uint64_t address; /* guest-physical */
	uint64_t size;
	uint64_t offset;
	int fd; /* borrowed */
};

/* -ENOMEM. */
int pv_memory_new(struct pv_memory **out);
void pv_memory_free(struct pv_memory *memory);

/* Add `size` bytes of RAM at guest-physical `address`, mapped at `host`, which is borrowed until
 * pv_memory_free. -EINVAL: empty, past the end of the address space, or over a region that is
 * there already; -ENOSPC: PV_MEMORY_REGIONS are there. */
int pv_memory_add(struct pv_memory *memory, uint64_t address, uint64_t size, void *host);

/* Say where another process finds a piece of a region; the file is borrowed until pv_memory_free.
 * -EINVAL: no region has all of it; -ENOSPC: PV_MEMORY_FILES are there. */
int pv_memory_share(struct pv_memory *memory, const struct pv_memory_file *file);

/* Where `length` bytes at `address` are mapped; NULL unless every one of them lies in one region,
 * or when `length` is 0. Any thread. */
void *pv_memory_at(const struct pv_memory *memory, uint64_t address, uint64_t length);

/* The region number `index`, from 0. -ENOENT: there are not so many. */
int pv_memory_region(const struct pv_memory *memory, unsigned index, uint64_t *address,
                     uint64_t *size, void **host);

/* What was shared as number `index`, from 0. -ENOENT: there are not so many. */
int pv_memory_file(const struct pv_memory *memory, unsigned index, struct pv_memory_file *file);

/* Let the host provide all pages from `start` now, with so many threads, 16 at most; what is in
 * them stays. No guest runs yet. -errno of madvise(2): -ENOMEM, -EFAULT where there is no room in a
 * file, -EINVAL where it may not be written, -EHWPOISON. */
int pv_memory_populate(void *start, uint64_t size, uint32_t threads);

/* Let pages from `start` on come from nodes of the host, as `policy`, an MPOL_* of
 * linux/mempolicy.h, has it. `nodes` has a bit for each node, in so many words. -errno of mbind(2):
 * -EINVAL for a node without memory, -ENOSYS where the kernel has no NUMA. */
int pv_memory_bind(void *start, uint64_t size, int policy, const uint64_t *nodes, uint32_t words);

/* Write `size` bytes of guest memory from `start` on, whole pages, to `offset` of the file `fd`; pages
 * of zeroes become holes of a file that had none there. The guest stands. `pagemap` is
 * /proc/self/pagemap where pages that this process has not touched are zeroes, which are then not
 * looked at; else -1. `written` grows by what was written. -errno of pwrite(2). */
int pv_memory_save(const void *start, uint64_t size, int fd, uint64_t offset, int pagemap,
                   uint64_t *written);

/* The same of memory that is a private mapping of files, or with `was_zero` began as zeroes, and of
 * no page but those that were written to since: their bits are set in `own`, which has one for each
 * page. Of them too, those of zeroes become holes. -ENODATA: the pagemap does not tell. */
int pv_memory_save_own(const void *start, uint64_t size, int fd, uint64_t offset, int pagemap,
                       int was_zero, uint8_t *own, uint64_t *written);

/* Put pages of a file that pv_memory_save_own has filled, from the file's beginning on, in place of
 * those from `start` on: the ones whose bits are set in `own`. Of their runs the longest are mapped
 * privately, `maps` at most, the others read. -errno of mmap(2) or pread(2); -EIO: the file is
 * shorter. */
int pv_memory_put(void *start, uint64_t size, int fd, const uint8_t *own, uint32_t maps);

#endif
