/* What a socket of the host's does not take at once is kept in a ring. All rings are address space of
 * the device from the first: its thread asks the host for no memory (sandbox/table.py). Pages are in
 * it from when something is kept to the end of that connection. */
#include <errno.h>
#include <sys/mman.h>

#include "vsock/internal.h"

int pv_vsock_make_rings(struct pv_vsock *vsock)
{
	struct pv_vsock_rings *rings = &vsock->rings;
	uint32_t large = vsock->limit < PV_VSOCK_LARGE ? vsock->limit : PV_VSOCK_LARGE;
	size_t bytes = (size_t)large * PV_VSOCK_CREDIT_LARGE +
	               (size_t)vsock->limit * PV_VSOCK_CREDIT_SMALL;
	void *made = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
	                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (made == MAP_FAILED)
		return -errno;
	(void)madvise(made, bytes, MADV_NOHUGEPAGE);
	rings->large = made;
	rings->small = rings->large + (size_t)large * PV_VSOCK_CREDIT_LARGE;
	rings->bytes = bytes;
	while (rings->free_count < large) {
		rings->free[rings->free_count] = (uint16_t)rings->free_count;
		rings->free_count++;
	}
	return 0;
}

void pv_vsock_free_rings(struct pv_vsock *vsock)
{
	if (vsock->rings.large)
		(void)munmap(vsock->rings.large, vsock->rings.bytes);
}

void pv_vsock_take_ring(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	struct pv_vsock_rings *rings = &vsock->rings;

	if (rings->free_count > 0) {
		size_t number = rings->free[--rings->free_count];

		conn->room = PV_VSOCK_CREDIT_LARGE;
		conn->data = rings->large + number * PV_VSOCK_CREDIT_LARGE;
	} else {
		size_t number = (size_t)(conn - vsock->conns);

		conn->room = PV_VSOCK_CREDIT_SMALL;
		conn->data = rings->small + number * PV_VSOCK_CREDIT_SMALL;
	}
}

void pv_vsock_give_ring_back(struct pv_vsock *vsock, struct pv_vsock_conn *conn)
{
	struct pv_vsock_rings *rings = &vsock->rings;

	if (conn->keeps)
		(void)madvise(conn->data, conn->room, MADV_DONTNEED);
	if (conn->room == PV_VSOCK_CREDIT_LARGE)
		rings->free[rings->free_count++] =
			(uint16_t)((size_t)(conn->data - rings->large) / PV_VSOCK_CREDIT_LARGE);
	conn->data = NULL;
	conn->keeps = false;
}
