/* A disk with an overlay: what is written goes there, and its image stays as it is. */
#include <sys/syscall.h>
#include <sys/uio.h>

#include "block/overlay_internal.h"
#include "tests/block/device.h"

enum { UNIT = 4096, IMAGE = SECTORS * 512, LAYERS = 3, TRIES = 150 };

/* A disk, and what is to be read from it. */
struct disk {
	struct device device;
	struct pv_overlay *layers[LAYERS];
	int files[LAYERS];
	unsigned count;
	char *image; /* as it was, and stays */
	char *model;
	uint64_t random;
};

static int strict = -1; /* a file that takes nothing but whole units, as direct I/O does */
static int full = -1;   /* a file that has no room for more than `room` bytes */
static int64_t room;
static atomic_int synced; /* the file that was, last */

static bool is_refused(int fd, const struct iovec *iov, int count, off_t at)
{
	uint64_t all = (uint64_t)at;

	for (int i = 0; i < count; i++)
		all |= (uint64_t)(uintptr_t)iov[i].iov_base | iov[i].iov_len;
	errno = EINVAL;
	return fd == strict && all % UNIT != 0;
}

/* In place of the C library's, for the files of the data path that are linked to this. */
ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t at, int flags)
{
	return is_refused(fd, iov, count, at) ? -1
	                                      : syscall(SYS_preadv2, fd, iov, count, at, 0, flags);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t at, int flags)
{
	struct iovec part = iov[0];

	if (fd != full)
		return syscall(SYS_pwritev2, fd, iov, count, at, 0, flags);
	if (room == 0) {
		errno = ENOSPC;
		return -1;
	}
	if ((int64_t)part.iov_len > room)
		part.iov_len = (size_t)room;
	room -= (int64_t)part.iov_len;
	return syscall(SYS_pwritev2, fd, &part, 1, at, 0, flags);
}

int fdatasync(int fd)
{
	atomic_store(&synced, fd);
	return (int)syscall(SYS_fdatasync, fd);
}

static unsigned next_random(struct disk *k)
{
	k->random ^= k->random << 13;
	k->random ^= k->random >> 7;
	k->random ^= k->random << 17;
	return (unsigned)(k->random >> 11);
}

static int make_layer(bool in_memory)
{
	int fd = in_memory ? memfd_create("layer", MFD_CLOEXEC | MFD_ALLOW_SEALING) : make_file(0);

	CHECK(fd >= 0);
	return fd;
}

static void add_layer(struct disk *k, bool in_memory)
{
	struct pv_overlay *below = k->count ? k->layers[k->count - 1] : NULL;

	k->files[k->count] = make_layer(in_memory);
	CHECK_EQ(pv_overlay_new(k->files[k->count], SECTORS, below, &k->layers[k->count]), 0);
	k->count++;
}

static void make_disk(struct disk *k, struct pv_block_config *config, bool in_memory)
{
	memset(k, 0, sizeof(*k));
	k->random = 88172645463325252;
	k->image = malloc(IMAGE);
	k->model = malloc(IMAGE);
	config->fd = make_file(IMAGE);
	for (uint32_t i = 0; i < IMAGE; i++)
		k->image[i] = (char)next_random(k);
	memcpy(k->model, k->image, IMAGE);
	CHECK_EQ(pwrite(config->fd, k->image, IMAGE, 0), IMAGE);
	add_layer(k, in_memory);
	config->overlay = k->layers[0];
	make(&k->device, config);
}

static void unmake_disk(struct disk *k)
{
	char *there = malloc(IMAGE);

	CHECK_EQ(pread(k->device.file, there, IMAGE, 0), IMAGE);
	CHECK_EQ(memcmp(there, k->image, IMAGE), 0);
	unmake(&k->device);
	while (k->count > 0) {
		pv_overlay_free(k->layers[--k->count]);
		close(k->files[k->count]);
	}
	free(there);
	free(k->image);
	free(k->model);
	strict = full = -1;
}

static void check_read(struct disk *k, uint32_t sector, uint32_t count)
{
	char *data = data_at(&k->device, 2 * DATA);
	uint32_t written;

	memset(data, 0x55, count * 512);
	CHECK_EQ(ask(&k->device, VIRTIO_BLK_T_IN, sector, data, count * 512, &written), 0);
	CHECK_EQ(written, count * 512 + 1);
	CHECK_EQ(memcmp(data, k->model + sector * 512, count * 512), 0);
}

static void check_all(struct disk *k)
{
	for (uint32_t at = 0; at < SECTORS; at += SECTORS / 2)
		check_read(k, at, SECTORS / 2);
}

static void write_sectors(struct disk *k, uint32_t sector, uint32_t count, unsigned seed)
{
	char *data = data_at(&k->device, 2 * DATA);

	fill(data, count * 512, seed);
	memcpy(k->model + sector * 512, data, count * 512);
	CHECK_EQ(ask(&k->device, VIRTIO_BLK_T_OUT, sector, data, count * 512, NULL), 0);
}

/* A transfer whose buffer lies in pieces of any length, at any address. */
static void transfer_in_pieces(struct disk *k, uint32_t type, uint32_t sector, uint32_t bytes)
{
	struct device *d = &k->device;
	struct part parts[10] = {{header(d, 0, type, sector), 16, false}};
	char *at = data_at(d, 2 * DATA + next_random(k) % 4);
	uint8_t *status = status_byte(d, 0);
	uint32_t done = 0;
	unsigned count = 1;

	for (; done < bytes; count++) {
		uint32_t left = bytes - done, part = count == 8 ? left : 1 + next_random(k) % left;

		parts[count] = (struct part){at, part, type == VIRTIO_BLK_T_IN};
		if (type == VIRTIO_BLK_T_OUT) {
			fill(at, part, next_random(k));
			memcpy(k->model + sector * 512 + done, at, part);
		} else {
			memset(at, 0x55, part);
		}
		done += part;
		at += part + next_random(k) % 3;
	}
	parts[count] = (struct part){status, 1, true};
	offer(d, &d->queues[0], parts, count + 1);
	kick(&d->queues[0]);
	WAIT_FOR(used(&d->queues[0]) == d->queues[0].offered);
	CHECK_EQ(*status, VIRTIO_BLK_S_OK);
	done = sector * 512;
	for (unsigned i = 1; type == VIRTIO_BLK_T_IN && i < count; done += parts[i++].length)
		CHECK_EQ(memcmp(parts[i].data, k->model + done, parts[i].length), 0);
}

static void do_something(struct disk *k)
{
	uint32_t sector = next_random(k) % SECTORS, most = SECTORS - sector;
	uint32_t count = 1 + next_random(k) % (next_random(k) % 8 ? 24 : 700);
	unsigned what = next_random(k) % 8;

	if (next_random(k) % 2) {
		sector &= ~7U;
		count = (count + 7) & ~7U;
		most = SECTORS - sector;
	}
	count = count < most ? count : most;
	if (what < 2) {
		write_sectors(k, sector, count, next_random(k));
	} else if (what < 5) {
		transfer_in_pieces(k, what == 4 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT, sector,
		                   count * 512);
	} else if (what < 7) {
		check_read(k, sector, count);
	} else {
		uint32_t type = next_random(k) % 2 ? VIRTIO_BLK_T_DISCARD
		                                   : VIRTIO_BLK_T_WRITE_ZEROES;

		CHECK_EQ(zero(&k->device, type, sector, count, 0, 16), VIRTIO_BLK_S_OK);
		memset(k->model + sector * 512, 0, count * 512);
	}
}

/* What is written so far is in a layer of its own from now on. */
static void freeze(struct disk *k, bool in_memory)
{
	CHECK_EQ(pv_block_drain(k->device.block, PV_FOREVER), 0);
	CHECK_EQ(pv_overlay_freeze(k->layers[k->count - 1]), 0);
	add_layer(k, in_memory);
	pv_block_set_overlay(k->device.block, k->layers[k->count - 1]);
	pv_block_resume(k->device.block);
}

/* The disk of a fork: its own newest layer, and below it those of the other, from their files. */
static void make_fork(struct disk *fork, const struct disk *k)
{
	struct pv_block_config config = {.fd = dup(k->device.file), .flags = PV_BLOCK_UNMAP};

	memset(fork, 0, sizeof(*fork));
	fork->random = k->random;
	fork->image = malloc(IMAGE);
	fork->model = malloc(IMAGE);
	memcpy(fork->image, k->image, IMAGE);
	memcpy(fork->model, k->model, IMAGE);
	for (; fork->count < k->count - 1; fork->count++) {
		unsigned i = fork->count;

		fork->files[i] = dup(k->files[i]);
		CHECK_EQ(pv_overlay_thaw(fork->files[i], SECTORS, i ? fork->layers[i - 1] : NULL,
		                         &fork->layers[i]),
		         0);
	}
	add_layer(fork, true);
	config.overlay = fork->layers[fork->count - 1];
	make(&fork->device, &config);
	start(&fork->device, FEATURES, 1);
}

/* The disk of a guest that was restored: its own newest layer, and below it all of the other's, made
 * one in a file. */
static void make_restored(struct disk *other, const struct disk *k)
{
	static const uint8_t mark[PV_OVERLAY_MARK] = "whose it is";
	struct pv_block_config config = {.fd = dup(k->device.file), .flags = PV_BLOCK_UNMAP};
	struct pv_overlay *top = k->layers[k->count - 1];
	uint64_t written = 0;
	char end[PV_OVERLAY_MARK];

	CHECK_EQ(pv_block_drain(k->device.block, PV_FOREVER), 0);
	memset(other, 0, sizeof(*other));
	other->random = k->random;
	other->image = malloc(IMAGE);
	other->model = malloc(IMAGE);
	memcpy(other->image, k->image, IMAGE);
	memcpy(other->model, k->model, IMAGE);
	other->files[0] = make_layer(false);
	CHECK_EQ(pv_overlay_copy(top, other->files[0], 0, PV_OVERLAY_SPAN, &written), 0);
	CHECK(written > 0 && written <= IMAGE);
	CHECK_EQ(pv_overlay_complete(top, other->files[0], mark), 0);
	CHECK_EQ(pread(other->files[0], end, sizeof(end),
	               lseek(other->files[0], 0, SEEK_END) - (off_t)sizeof(end)),
	         sizeof(end));
	CHECK_EQ(memcmp(end, mark, sizeof(end)), 0);
	CHECK_EQ(pv_overlay_thaw(other->files[0], SECTORS, NULL, &other->layers[0]), 0);
	other->count = 1;
	pv_block_resume(k->device.block);
	add_layer(other, true);
	config.overlay = other->layers[1];
	make(&other->device, &config);
	start(&other->device, FEATURES, 1);
}

static void do_things(struct disk *k)
{
	for (unsigned i = 0; i < TRIES; i++)
		do_something(k);
	check_all(k);
}

static void try_at_random(bool in_memory, uint32_t align)
{
	struct pv_block_config config = {
		.flags = PV_BLOCK_UNMAP, .offset_align = align, .memory_align = align};
	struct disk k, forks[2], restored;

	make_disk(&k, &config, in_memory);
	CHECK(pv_overlay_is_empty(k.layers[0]));
	strict = align > 1 ? k.device.file : -1;
	start(&k.device, FEATURES, 1);
	for (unsigned layer = 1; layer < LAYERS; layer++) {
		do_things(&k);
		CHECK(!pv_overlay_is_empty(k.layers[layer - 1]));
		freeze(&k, in_memory);
	}
	/* The three go on from there, and none sees what another one writes. */
	for (unsigned i = 0; i < 2; i++) {
		make_fork(&forks[i], &k);
		forks[i].random += i;
	}
	check_all(&forks[0]);
	do_things(&k);
	for (unsigned i = 0; i < 2; i++)
		do_things(&forks[i]);
	check_all(&k);
	for (unsigned i = 0; i < 2; i++) {
		check_all(&forks[i]);
		unmake_disk(&forks[i]);
	}
	/* All that is written is in its newest layer, and in the two below that. */
	make_restored(&restored, &k);
	check_all(&restored);
	do_things(&k);
	do_things(&restored);
	check_all(&k);
	unmake_disk(&restored);
	unmake_disk(&k);
}

static void test_all_that_is_asked_in_memory(void)
{
	try_at_random(true, 1);
}

static void test_all_that_is_asked_in_a_file(void)
{
	try_at_random(false, 1);
}

static void test_all_that_is_asked_over_an_image_with_direct_io(void)
{
	try_at_random(true, UNIT);
}

/* Of a unit of whatever else, each has a few sectors. */
static void test_two_threads_write_next_to_each_other(void)
{
	struct pv_block_config config = {.fd = -1};
	struct disk k;
	struct device *d = &k.device;

	make_disk(&k, &config, true);
	start(d, FEATURES, 2);
	for (unsigned round = 0; round < 2 * TRIES; round++) {
		uint32_t sector = next_random(&k) % (SECTORS - 64);

		for (unsigned i = 0; i < 16; i++) {
			uint32_t at = sector + 4 * i;
			char *data = data_at(d, 4096 * i);

			fill(data, 4 * 512, next_random(&k));
			memcpy(k.model + at * 512, data, 4 * 512);
			request(d, &d->queues[i % 2], i, VIRTIO_BLK_T_OUT, at, data, 4 * 512);
		}
		kick(&d->queues[0]);
		kick(&d->queues[1]);
		for (unsigned q = 0; q < 2; q++)
			WAIT_FOR(used(&d->queues[q]) == d->queues[q].offered);
		check_read(&k, sector, 64);
	}
	check_all(&k);
	unmake_disk(&k);
}

/* What there was room for may have been written; all else is as before. */
static void test_an_overlay_that_is_full(void)
{
	struct pv_block_config config = {.fd = -1};
	struct disk k;
	char *data, *before = malloc(IMAGE);
	uint32_t type;

	make_disk(&k, &config, true);
	start(&k.device, FEATURES, 1);
	memcpy(before, k.model, IMAGE);
	data = data_at(&k.device, 0);
	full = k.files[0];
	room = 3 * 512 + 100;
	fill(data, 8 * 512, 1);
	CHECK_EQ(ask(&k.device, VIRTIO_BLK_T_OUT, 8, data, 8 * 512, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(pv_block_take_error(k.device.block, &type), ENOSPC);
	CHECK_EQ(type, VIRTIO_BLK_T_OUT);
	memcpy(k.model + 8 * 512, data, 3 * 512);
	check_all(&k);
	room = 1 << 20;
	write_sectors(&k, 8, 8, 2);
	check_all(&k);
	free(before);
	unmake_disk(&k);
}

static void test_room_is_given_back(void)
{
	struct pv_block_config config = {.fd = -1, .flags = PV_BLOCK_UNMAP};
	struct pv_block_stats stats;
	struct disk k;

	make_disk(&k, &config, true);
	start(&k.device, FEATURES, 1);
	pv_block_stats(k.device.block, &stats);
	CHECK_EQ(stats.overlay_bytes, 0);
	write_sectors(&k, 0, 64, 1);
	pv_block_stats(k.device.block, &stats);
	CHECK(stats.overlay_bytes >= 64 * 512);
	CHECK_EQ(zero(&k.device, VIRTIO_BLK_T_DISCARD, 0, 64, 0, 16), VIRTIO_BLK_S_OK);
	pv_block_stats(k.device.block, &stats);
	CHECK_EQ(stats.overlay_bytes, 0);
	memset(k.model, 0, 64 * 512);
	check_all(&k);
	unmake_disk(&k);
}

static void test_zeroes_take_no_room(void)
{
	struct pv_block_config config = {.fd = -1, .flags = PV_BLOCK_DETECT_ZEROES};
	struct pv_block_stats stats;
	struct disk k;
	char *data;

	make_disk(&k, &config, false);
	start(&k.device, FEATURES, 1);
	data = data_at(&k.device, 0);
	memset(data, 0, DATA);
	CHECK_EQ(ask(&k.device, VIRTIO_BLK_T_OUT, 3, data, DATA, NULL), VIRTIO_BLK_S_OK);
	memset(k.model + 3 * 512, 0, DATA);
	CHECK_EQ(zero(&k.device, VIRTIO_BLK_T_WRITE_ZEROES, 1001, 999, 0, 16), VIRTIO_BLK_S_OK);
	memset(k.model + 1001 * 512, 0, 999 * 512);
	check_all(&k);
	pv_block_stats(k.device.block, &stats);
	CHECK_EQ(stats.overlay_bytes, 0);
	unmake_disk(&k);
}

static void test_flushes(void)
{
	for (unsigned in_memory = 0; in_memory < 2; in_memory++) {
		struct pv_block_config config = {.fd = -1, .flags = PV_BLOCK_THREADS};
		struct disk k;

		make_disk(&k, &config, in_memory);
		synced = -1;
		start(&k.device, FEATURES, 1);
		write_sectors(&k, 7, 1, 1);
		CHECK_EQ(atomic_load(&synced), -1);
		CHECK_EQ(ask(&k.device, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL), VIRTIO_BLK_S_OK);
		CHECK_EQ(atomic_load(&synced), in_memory ? -1 : k.files[0]);
		unmake_disk(&k);
	}
}

static void test_another_size(void)
{
	struct pv_block_config config = {.offset_align = 1, .memory_align = 1, .sectors = 9};
	struct pv_block *block;
	int fd = make_layer(true);

	CHECK_EQ(pv_overlay_new(fd, 8, NULL, &config.overlay), 0);
	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	pv_overlay_free(config.overlay);
	CHECK_EQ(pv_overlay_new(fd, 0, NULL, &config.overlay), -EINVAL);
	CHECK_EQ(pv_overlay_new(fd, UINT64_MAX, NULL, &config.overlay), -EINVAL);
	CHECK_EQ(pv_overlay_new(-1, 8, NULL, &config.overlay), -EBADF);
	close(fd);
}

static void check_no_layer(int fd, uint64_t sectors)
{
	struct pv_overlay *layer;

	CHECK_EQ(pv_overlay_thaw(fd, sectors, NULL, &layer), -EINVAL);
	CHECK(!layer);
}

static void test_files_that_are_no_layers(void)
{
	enum { END = IMAGE + UNIT };
	int fd = make_layer(true);
	struct pv_overlay *layer;
	uint64_t length = 512;
	char byte = 0;

	check_no_layer(fd, SECTORS);
	CHECK_EQ(pv_overlay_new(fd, SECTORS, NULL, &layer), 0);
	check_no_layer(fd, SECTORS);
	pv_overlay_mark(layer, 512, 1024);
	CHECK_EQ(pv_overlay_freeze(layer), 0);
	pv_overlay_free(layer);
	check_no_layer(fd, SECTORS - 8);
	check_no_layer(fd, 2 * SECTORS);
	CHECK_EQ(pv_overlay_thaw(fd, SECTORS, NULL, &layer), 0);
	CHECK(pv_overlay_find(layer, 512, &length) == layer && length == 512);
	CHECK(!pv_overlay_find(layer, 1024, &length));
	pv_overlay_free(layer);
	for (unsigned i = 0; i < 32; i++) {
		char was;

		CHECK_EQ(pread(fd, &was, 1, END + i), 1);
		byte = (char)~was;
		CHECK_EQ(pwrite(fd, &byte, 1, END + i), 1);
		check_no_layer(fd, SECTORS);
		CHECK_EQ(pwrite(fd, &was, 1, END + i), 1);
	}
	CHECK_EQ(ftruncate(fd, END + 47), 0);
	check_no_layer(fd, SECTORS);
	CHECK_EQ(ftruncate(fd, END + 49), 0);
	check_no_layer(fd, SECTORS);
	close(fd);
}

static void run_all(void)
{
	RUN(test_all_that_is_asked_in_memory);
	RUN(test_all_that_is_asked_in_a_file);
	RUN(test_all_that_is_asked_over_an_image_with_direct_io);
	RUN(test_two_threads_write_next_to_each_other);
	RUN(test_an_overlay_that_is_full);
	RUN(test_room_is_given_back);
	RUN(test_zeroes_take_no_room);
	RUN(test_flushes);
}

int main(void)
{
	on_each_engine(run_all);
	RUN(test_another_size);
	RUN(test_files_that_are_no_layers);
	return 0;
}
