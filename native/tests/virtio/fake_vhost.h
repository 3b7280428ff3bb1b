/* The kernel's vhost devices, as far as they can be told from it: this program's ioctl(2). What is
 * said of each descriptor is kept, and a request fails where a test wants it to. */
#ifndef PV_TESTS_FAKE_VHOST_H
#define PV_TESTS_FAKE_VHOST_H

#include <errno.h>
#include <linux/vhost.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "tests/check.h"

enum { FAKES = 4, FAKE_RINGS = 2, FAKE_REGIONS = 4, FAKE_NONE = -1 };

struct fake_ring {
	uint32_t size;
	uint32_t base; /* the entry that the kernel takes next */
	struct vhost_vring_addr address;
	int kick, call, error;
	int backend; /* of vhost-net */
};

struct fake {
	int fd;
	bool owned;
	bool running; /* of vhost-vsock */
	uint64_t features, cid;
	uint32_t region_count;
	struct vhost_memory_region regions[FAKE_REGIONS];
	struct fake_ring rings[FAKE_RINGS];
};

static struct fake fakes[FAKES];
static unsigned fake_count;
static uint64_t fake_offers; /* features */
/* The request that fails, behind so many that do not; 0: none. */
static unsigned long fake_fails;
static unsigned fake_fails_after;

/* A new device; its descriptor. */
static inline int fake_make(void)
{
	struct fake *fake = &fakes[fake_count++];

	CHECK(fake_count <= FAKES);
	*fake = (struct fake){.fd = eventfd(0, EFD_CLOEXEC)};
	for (unsigned i = 0; i < FAKE_RINGS; i++)
		fake->rings[i].backend = FAKE_NONE;
	CHECK(fake->fd >= 0);
	return fake->fd;
}

static inline void fake_unmake_all(void)
{
	while (fake_count > 0)
		close(fakes[--fake_count].fd);
}

static inline struct fake *fake_of(int fd)
{
	for (unsigned i = 0; i < fake_count; i++)
		if (fakes[i].fd == fd)
			return &fakes[i];
	return NULL;
}

static inline void fake_set_memory(struct fake *fake, const struct vhost_memory *table)
{
	CHECK(table->nregions <= FAKE_REGIONS);
	fake->region_count = table->nregions;
	memcpy(fake->regions, table->regions, table->nregions * sizeof(fake->regions[0]));
}

/* Those that begin with the number of a ring; false: it is another. */
static inline bool fake_ring_request(struct fake *fake, unsigned long request, void *argument)
{
	struct vhost_vring_state *state = argument;
	const struct vhost_vring_file *file = argument;
	struct fake_ring *ring;

	if (request == VHOST_SET_OWNER || request == VHOST_RESET_OWNER)
		return false;
	ring = &fake->rings[state->index % FAKE_RINGS];
	if (request == VHOST_SET_VRING_NUM)
		ring->size = state->num;
	else if (request == VHOST_SET_VRING_BASE)
		ring->base = state->num;
	else if (request == VHOST_GET_VRING_BASE)
		state->num = ring->base;
	else if (request == VHOST_SET_VRING_ADDR)
		ring->address = *(const struct vhost_vring_addr *)argument;
	else if (request == VHOST_SET_VRING_KICK)
		ring->kick = file->fd;
	else if (request == VHOST_SET_VRING_CALL)
		ring->call = file->fd;
	else if (request == VHOST_SET_VRING_ERR)
		ring->error = file->fd;
	else if (request == VHOST_NET_SET_BACKEND)
		ring->backend = file->fd;
	else
		return false;
	return true;
}

static inline int fake_answer(struct fake *fake, unsigned long request, void *argument)
{
	if (request == fake_fails && fake_fails_after-- == 0) {
		fake_fails = fake_fails_after = 0;
		errno = EIO;
		return -1;
	}
	if (fake_ring_request(fake, request, argument))
		return 0;
	if (request == VHOST_SET_OWNER || request == VHOST_RESET_OWNER)
		fake->owned = request == VHOST_SET_OWNER;
	else if (request == VHOST_GET_FEATURES)
		*(uint64_t *)argument = fake_offers;
	else if (request == VHOST_SET_FEATURES)
		fake->features = *(const uint64_t *)argument;
	else if (request == VHOST_SET_MEM_TABLE)
		fake_set_memory(fake, argument);
	else if (request == VHOST_VSOCK_SET_GUEST_CID)
		fake->cid = *(const uint64_t *)argument;
	else if (request == VHOST_VSOCK_SET_RUNNING)
		fake->running = *(const int *)argument != 0;
	else
		CHECK_EQ(request, 0); /* it knows no other */
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	struct fake *fake = fake_of(fd);
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	return fake ? fake_answer(fake, request, argument)
	            : (int)syscall(SYS_ioctl, fd, request, argument);
}

/* What is set up of every ring, in this order, and may fail. */
static const unsigned long FAKE_SET_UP[] = {
	VHOST_GET_FEATURES,   VHOST_SET_FEATURES,   VHOST_SET_MEM_TABLE,  VHOST_SET_VRING_NUM,
	VHOST_SET_VRING_BASE, VHOST_SET_VRING_ADDR, VHOST_SET_VRING_KICK, VHOST_SET_VRING_CALL,
	VHOST_SET_VRING_ERR,
};
enum { FAKE_STEPS = sizeof(FAKE_SET_UP) / sizeof(FAKE_SET_UP[0]) };

#endif
