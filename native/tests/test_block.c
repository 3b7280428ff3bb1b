/* The block device's data path, driven over a ring in memory by a small driver, on real files.
 *
 * sources: block.c block_alignment.c block_request.c block_work.c io.c uring.c pool.c throttle.c
 * memory.c virtqueue.c virtqueue_chain.c virtio_irq.c */
#include "block.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "check.h"
#include "io_internal.h"
#include "throttle_internal.h"
#include "virtio_irq.h"
#include "virtqueue_internal.h"

enum { QUEUES = 4, SIZE = 64, RAM = 4 << 20, SECTORS = 2048, DATA = 64 * 1024 };
enum { FEATURES = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD |
                  1 << VIRTIO_BLK_F_WRITE_ZEROES };
/* What a status byte holds until the device has answered. */
enum { UNANSWERED = 0xaa };

struct queue {
	struct pv_virtqueue *ring;
	struct pv_desc *desc;
	struct pv_avail *avail;
	struct pv_used *used;
	int kick_fd;
	uint16_t free; /* the next descriptor to use */
	uint16_t offered;
};

struct device {
	char *ram;
	int file;
	int irq_fd;
	int broken_fd;
	void *page;
	struct pv_memory *memory;
	struct pv_virtio_irq *irq;
	struct pv_block *block;
	struct queue queues[QUEUES];
};

/* A part of a request's buffer. */
struct part {
	const void *data; /* in guest memory */
	uint32_t length;
	bool writable;
};

static uint32_t engine_flag; /* which engine the tests run on */

static char *data_at(struct device *d, uint32_t offset)
{
	return d->ram + RAM / 2 + offset;
}

static void make_queue(struct device *d, unsigned index)
{
	struct queue *q = &d->queues[index];
	uint64_t base = index * 0x4000;
	struct pv_virtqueue_config config = {
		.desc = base, .avail = base + 0x1000, .used = base + 0x2000, .size = SIZE};

	memset(d->ram + base, 0, 0x4000);
	CHECK_EQ(pv_virtqueue_new(d->memory, &config, &q->ring), 0);
	q->desc = (struct pv_desc *)(d->ram + config.desc);
	q->avail = (struct pv_avail *)(d->ram + config.avail);
	q->used = (struct pv_used *)(d->ram + config.used);
	q->free = q->offered = 0;
	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static int make_file(uint64_t bytes)
{
	char name[] = "disk-XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);

	CHECK(fd >= 0);
	unlink(name);
	CHECK_EQ(ftruncate(fd, (off_t)bytes), 0);
	return fd;
}

static void start(struct device *d, uint64_t features, uint32_t queues)
{
	struct pv_block_queue served[QUEUES];

	for (unsigned i = 0; i < queues; i++) {
		make_queue(d, i);
		served[i] = (struct pv_block_queue){d->queues[i].ring, d->queues[i].kick_fd};
	}
	CHECK_EQ(pv_block_start(d->block, features, served, queues, d->irq), 0);
	CHECK_EQ(pv_block_start(d->block, features, served, queues, d->irq), -EBUSY);
}

static void stop(struct device *d)
{
	pv_block_stop(d->block);
	for (unsigned i = 0; i < QUEUES && d->queues[i].ring; i++) {
		pv_virtqueue_free(d->queues[i].ring);
		close(d->queues[i].kick_fd);
		d->queues[i].ring = NULL;
	}
}

/* A device that is not started; the caller may have changed the defaults in `config`. */
static void make(struct device *d, struct pv_block_config *config)
{
	memset(d, 0, sizeof(*d));
	d->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	d->page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(d->ram != MAP_FAILED && d->page != MAP_FAILED);
	CHECK_EQ(pv_memory_new(&d->memory), 0);
	CHECK_EQ(pv_memory_add(d->memory, 0, RAM, d->ram), 0);
	d->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	d->broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK_EQ(pv_virtio_irq_new(d->page, d->irq_fd, d->broken_fd, &d->irq), 0);
	d->file = config->fd >= 0 ? config->fd : make_file(SECTORS * 512);
	config->fd = d->file;
	config->flags |= engine_flag;
	config->sectors = config->sectors ? config->sectors : SECTORS;
	config->offset_align = config->offset_align ? config->offset_align : 1;
	config->memory_align = config->memory_align ? config->memory_align : 1;
	memcpy(config->id, "serial number 12345", 20);
	CHECK_EQ(pv_block_new(config, &d->block), 0);
}

static void unmake(struct device *d)
{
	stop(d);
	pv_block_free(d->block);
	pv_virtio_irq_free(d->irq);
	pv_memory_free(d->memory);
	munmap(d->page, 4096);
	munmap(d->ram, RAM);
	close(d->file);
	close(d->irq_fd);
	close(d->broken_fd);
}

static void make_started(struct device *d, uint32_t flags)
{
	struct pv_block_config config = {.fd = -1, .flags = flags};

	make(d, &config);
	start(d, FEATURES, 1);
}

/* Put a chain into the ring; a kick shows it to the device. */
static void offer(struct device *d, struct queue *q, const struct part *parts, unsigned count)
{
	uint16_t head = q->free;

	for (unsigned i = 0; i < count; i++) {
		struct pv_desc *desc = &q->desc[q->free];

		q->free = (uint16_t)((q->free + 1) % SIZE);
		desc->address = (uint64_t)((const char *)parts[i].data - d->ram);
		desc->length = parts[i].length;
		desc->flags = (uint16_t)((parts[i].writable ? PV_DESC_WRITE : 0) |
		                         (i + 1 < count ? PV_DESC_NEXT : 0));
		desc->next = q->free;
	}
	q->avail->ring[q->offered % SIZE] = head;
	q->offered++;
	__atomic_store_n(&q->avail->idx, q->offered, __ATOMIC_RELEASE);
}

static void kick(struct queue *q)
{
	CHECK_EQ(eventfd_write(q->kick_fd, 1), 0);
}

static uint16_t used(const struct queue *q)
{
	return __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE);
}

static struct virtio_blk_outhdr *header(struct device *d, unsigned slot, uint32_t type,
                                        uint64_t sector)
{
	struct virtio_blk_outhdr *h = (struct virtio_blk_outhdr *)data_at(d, DATA) + slot;

	*h = (struct virtio_blk_outhdr){.type = type, .sector = sector};
	return h;
}

static uint8_t *status_byte(struct device *d, unsigned slot)
{
	uint8_t *status = (uint8_t *)data_at(d, DATA + 0x4000) + slot;

	*status = UNANSWERED;
	return status;
}

/* Offer a request of the usual form; return where its status will be. */
static uint8_t *request(struct device *d, struct queue *q, unsigned slot, uint32_t type,
                        uint64_t sector, void *data, uint32_t length)
{
	uint8_t *status = status_byte(d, slot);
	bool in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
	struct part parts[] = {{header(d, slot, type, sector), 16, false},
	                       {data, length, in},
	                       {status, 1, true}};

	if (length == 0)
		parts[1] = parts[2];
	offer(d, q, parts, length ? 3 : 2);
	return status;
}

/* The answer to one request, and what the used ring says was written. */
static uint8_t ask(struct device *d, uint32_t type, uint64_t sector, void *data, uint32_t length,
                   uint32_t *written)
{
	struct queue *q = &d->queues[0];
	uint8_t *status = request(d, q, 0, type, sector, data, length);

	kick(q);
	WAIT_FOR(used(q) == q->offered);
	if (written)
		*written = q->used->ring[(q->offered - 1) % SIZE].len;
	return *status;
}

static void check_lives(struct device *d)
{
	char *data = data_at(d, 0);

	CHECK_EQ(ask(d, VIRTIO_BLK_T_IN, 0, data, 512, NULL), VIRTIO_BLK_S_OK);
}

static void check_broken(struct device *d, const char *why)
{
	CHECK(readable(d->broken_fd, 10000));
	CHECK_EQ(strcmp(pv_virtio_irq_take_reason(d->irq), why), 0);
	CHECK(__atomic_load_n((uint32_t *)((char *)d->page + 0x70), __ATOMIC_ACQUIRE) & 64);
}

static void fill(char *data, uint32_t length, unsigned seed)
{
	for (uint32_t i = 0; i < length; i++)
		data[i] = (char)(i * 7 + i / 256 + seed);
}

static void test_what_is_written_is_read_back(void)
{
	struct device d;
	char *out, *in, *check = malloc(DATA);
	uint32_t written;

	make_started(&d, 0);
	out = data_at(&d, 0);
	in = data_at(&d, 2 * DATA);
	fill(out, DATA, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 3, out, DATA, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 3, in, DATA, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, DATA + 1);
	CHECK_EQ(memcmp(in, out, DATA), 0);
	CHECK_EQ(pread(d.file, check, DATA, 3 * 512), DATA);
	CHECK_EQ(memcmp(check, out, DATA), 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTORS - 1, in, 512, NULL), VIRTIO_BLK_S_OK);
	unmake(&d);
	free(check);
}

static void test_header_and_data_split_anyhow(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	char *data, *h;
	uint8_t *status;

	make_started(&d, 0);
	data = data_at(&d, 0);
	fill(data, 2048, 5);
	h = (char *)header(&d, 0, VIRTIO_BLK_T_OUT, 1);
	status = status_byte(&d, 0);
	/* The last byte of the header and the first of the data in one descriptor. */
	memcpy(data - 1, h + 15, 1);
	struct part write[] = {{h, 3, false},          {h + 3, 6, false}, {h + 9, 6, false},
	                       {data - 1, 701, false}, {data + 700, 324, false},
	                       {status, 1, true}};
	offer(&d, q, write, 6);
	kick(q);
	WAIT_FOR(used(q) == 1);
	CHECK_EQ(*status, VIRTIO_BLK_S_OK);
	h = (char *)header(&d, 0, VIRTIO_BLK_T_IN, 1);
	status = status_byte(&d, 0);
	/* Data and status in one descriptor. */
	struct part read[] = {{h, 16, false}, {data + 4096, 100, true}, {data + 8192, 925, true}};
	offer(&d, q, read, 3);
	kick(q);
	WAIT_FOR(used(q) == 2);
	CHECK_EQ(data[8192 + 924], VIRTIO_BLK_S_OK);
	CHECK_EQ(memcmp(data + 4096, data, 100), 0);
	CHECK_EQ(memcmp(data + 8192, data + 100, 924), 0);
	CHECK_EQ(*status, UNANSWERED);
	unmake(&d);
}

static void test_a_missing_status_byte_breaks_the_device(void)
{
	struct device d;

	make_started(&d, 0);
	struct part parts[] = {{header(&d, 0, VIRTIO_BLK_T_OUT, 0), 16, false},
	                       {data_at(&d, 0), 512, false}};
	offer(&d, &d.queues[0], parts, 2);
	kick(&d.queues[0]);
	check_broken(&d, "a block request without a status byte");
	unmake(&d);
}

static void test_a_short_header_breaks_the_device(void)
{
	struct device d;

	make_started(&d, 0);
	struct part parts[] = {{header(&d, 0, VIRTIO_BLK_T_IN, 0), 15, false},
	                       {status_byte(&d, 0), 1, true}};
	offer(&d, &d.queues[0], parts, 2);
	kick(&d.queues[0]);
	check_broken(&d, "a block request without a whole header");
	unmake(&d);
}

static void test_a_broken_ring_breaks_the_device_and_all_its_queues(void)
{
	struct pv_block_config config = {.fd = -1};
	struct device d;
	uint8_t *status;

	make(&d, &config);
	start(&d, FEATURES, 2);
	d.queues[0].avail->ring[0] = SIZE;
	__atomic_store_n(&d.queues[0].avail->idx, 1, __ATOMIC_RELEASE);
	kick(&d.queues[0]);
	check_broken(&d, "head 64 in a queue of 64");
	status = request(&d, &d.queues[1], 0, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 512);
	kick(&d.queues[1]);
	usleep(2000);
	CHECK_EQ(*status, UNANSWERED);
	/* A reset makes it whole. */
	stop(&d);
	pv_virtio_irq_reset(d.irq);
	start(&d, FEATURES, 2);
	check_lives(&d);
	unmake(&d);
}

static void test_beyond_capacity(void)
{
	static const uint64_t SECTOR[] = {SECTORS, SECTORS - 1, UINT64_MAX, UINT64_MAX / 512,
	                                  UINT64_MAX / 512 + 1, UINT64_C(1) << 55};
	struct device d;
	char *data;

	make_started(&d, 0);
	data = data_at(&d, 0);
	for (unsigned i = 0; i < sizeof(SECTOR) / sizeof(SECTOR[0]); i++) {
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTOR[i], data, 1024, NULL), VIRTIO_BLK_S_IOERR);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, SECTOR[i], data, 1024, NULL), VIRTIO_BLK_S_IOERR);
	}
	CHECK_EQ(lseek(d.file, 0, SEEK_END), SECTORS * 512);
	check_lives(&d);
	unmake(&d);
}

static void test_half_sectors_are_refused(void)
{
	struct device d;

	make_started(&d, 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 511, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 513, NULL), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	unmake(&d);
}

static void test_unknown_requests_are_unsupported(void)
{
	struct device d;
	uint32_t written;

	make_started(&d, 0);
	CHECK_EQ(ask(&d, 77, 0, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(ask(&d, 2, 0, NULL, 0, &written), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(written, 1);
	check_lives(&d);
	unmake(&d);
}

static void test_serial_number(void)
{
	struct device d;
	char *data;
	uint32_t written;

	make_started(&d, 0);
	data = data_at(&d, 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_GET_ID, 0, data, 20, &written), VIRTIO_BLK_S_OK);
	CHECK_EQ(written, 21);
	CHECK_EQ(memcmp(data, "serial number 12345", 20), 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_GET_ID, 0, data, 19, NULL), VIRTIO_BLK_S_IOERR);
	unmake(&d);
}

static void test_read_only(void)
{
	struct virtio_blk_discard_write_zeroes *range;
	struct device d;
	char *data, byte;

	make_started(&d, PV_BLOCK_READONLY | PV_BLOCK_UNMAP);
	CHECK_EQ(pwrite(d.file, "x", 1, 0), 1);
	data = data_at(&d, 0);
	range = (void *)data;
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data, 512, NULL), VIRTIO_BLK_S_IOERR);
	*range = (struct virtio_blk_discard_write_zeroes){.num_sectors = 8};
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_DISCARD, 0, data, 16, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_WRITE_ZEROES, 0, data, 16, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL), VIRTIO_BLK_S_OK);
	check_lives(&d);
	CHECK_EQ(pread(d.file, &byte, 1, 0), 1);
	CHECK_EQ(byte, 'x');
	unmake(&d);
}

static uint8_t zero(struct device *d, uint32_t type, uint64_t sector, uint32_t sectors,
                    uint32_t flags, uint32_t length)
{
	struct virtio_blk_discard_write_zeroes *range = (void *)data_at(d, 0);

	for (uint32_t i = 0; i < (length + 15) / 16; i++)
		range[i] = (struct virtio_blk_discard_write_zeroes){sector + i * sectors, sectors,
		                                                    flags};
	return ask(d, type, 0, range, length, NULL);
}

static void test_hostile_ranges(void)
{
	static const struct {
		uint64_t sector;
		uint32_t sectors, flags, length;
		uint8_t discard, zeroes;
	} CASES[] = {
		{SECTORS, 1, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{SECTORS - 1, 2, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{UINT64_MAX, 1, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, UINT32_MAX, 0, 16, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 1, 2, 16, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_UNSUPP},
		{0, 1, 1, 16, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_OK},
		{0, 1, 0, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 1, 0, 15, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 1, 0, 17, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 1, 0, 16 * PV_BLOCK_RANGES, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK},
		{0, 1, 0, 16 * (PV_BLOCK_RANGES + 1), VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR},
		{0, 0, 0, 16, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK},
	};
	struct device d;

	make_started(&d, PV_BLOCK_UNMAP);
	for (unsigned i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
		fprintf(stderr, "  case %u\n", i);
		CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, CASES[i].sector, CASES[i].sectors,
		              CASES[i].flags, CASES[i].length),
		         CASES[i].discard);
		CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, CASES[i].sector, CASES[i].sectors,
		              CASES[i].flags, CASES[i].length),
		         CASES[i].zeroes);
	}
	CHECK_EQ(lseek(d.file, 0, SEEK_END), SECTORS * 512);
	unmake(&d);
}

static void test_ranges_that_were_not_negotiated(void)
{
	struct pv_block_config config = {.fd = -1, .flags = PV_BLOCK_UNMAP};
	struct device d;

	make(&d, &config);
	start(&d, 0, 1);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 0, 1, 0, 16), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 0, 16), VIRTIO_BLK_S_UNSUPP);
	unmake(&d);
}

static void ones(int fd)
{
	char *data = malloc(SECTORS * 512);

	memset(data, 1, SECTORS * 512);
	CHECK_EQ(pwrite(fd, data, SECTORS * 512, 0), SECTORS * 512);
	CHECK_EQ(fsync(fd), 0);
	free(data);
}

static uint64_t room(int fd)
{
	struct stat status;

	CHECK_EQ(fstat(fd, &status), 0);
	return (uint64_t)status.st_blocks;
}

/* Whether exactly these bytes of a file of ones are zero. */
static void check_zero(int fd, uint32_t from, uint32_t to)
{
	char *data = malloc(SECTORS * 512);

	CHECK_EQ(pread(fd, data, SECTORS * 512, 0), SECTORS * 512);
	for (uint32_t i = 0; i < SECTORS * 512; i++)
		CHECK(data[i] == (i < from || i >= to));
	free(data);
}

static void test_zeroed_ranges(void)
{
	struct device d;

	make_started(&d, PV_BLOCK_UNMAP);
	ones(d.file);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 1, 3, 0, 32), VIRTIO_BLK_S_OK);
	check_zero(d.file, 512, 7 * 512);
	ones(d.file);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 0, 1024, 0, 16), VIRTIO_BLK_S_OK);
	check_zero(d.file, 0, 1024 * 512);
	CHECK(room(d.file) < SECTORS);
	CHECK_EQ(lseek(d.file, 0, SEEK_END), SECTORS * 512);
	unmake(&d);
}

/* A memfd has no way to zero a range and keep it; a device file has none at all. */
static void test_zeroes_are_written_where_ranges_cannot_be(void)
{
	struct pv_block_config config = {.fd = memfd_create("disk", MFD_CLOEXEC)};
	struct pv_block_config device = {.fd = open("/dev/zero", O_RDWR | O_CLOEXEC),
	                                 .sectors = 1 << 20};
	struct device d;

	CHECK(config.fd >= 0 && device.fd >= 0);
	ones(config.fd);
	make(&d, &config);
	start(&d, FEATURES, 1);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 5, 501, 0, 48), VIRTIO_BLK_S_OK);
	check_zero(d.file, 5 * 512, 1508 * 512);
	unmake(&d);
	make(&d, &device);
	start(&d, FEATURES, 1);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_WRITE_ZEROES, 0, 40000, 0, 48), VIRTIO_BLK_S_OK);
	CHECK_EQ(zero(&d, VIRTIO_BLK_T_DISCARD, 0, 40000, 0, 48), VIRTIO_BLK_S_OK);
	unmake(&d);
}

static void test_zeroes_are_detected(void)
{
	struct device d;
	char *data;

	make_started(&d, PV_BLOCK_DETECT_ZEROES | PV_BLOCK_DETECT_UNMAP | PV_BLOCK_UNMAP);
	ones(d.file);
	data = data_at(&d, 0);
	memset(data, 0, DATA);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 8, data, DATA, NULL), VIRTIO_BLK_S_OK);
	check_zero(d.file, 8 * 512, 8 * 512 + DATA);
	CHECK(room(d.file) < SECTORS);
	data[DATA - 1] = 1;
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 8, data, DATA, NULL), VIRTIO_BLK_S_OK);
	check_zero(d.file, 8 * 512, 8 * 512 + DATA - 1);
	CHECK_EQ(room(d.file), SECTORS);
	unmake(&d);
}

static void test_a_full_disk_is_an_io_error(void)
{
	struct pv_block_config config = {.fd = open("/dev/full", O_RDWR | O_CLOEXEC)};
	struct device d;

	CHECK(config.fd >= 0);
	make(&d, &config);
	start(&d, FEATURES, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 4096, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	unmake(&d);
}

static void test_a_shrunk_file_is_an_io_error(void)
{
	struct device d;
	char *data;

	make_started(&d, 0);
	data = data_at(&d, 0);
	CHECK_EQ(ftruncate(d.file, 8192), 0);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 15, data, 4096, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 16, data, 512, NULL), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 15, data, 512, NULL), VIRTIO_BLK_S_OK);
	unmake(&d);
}

/* A descriptor that cannot be written stands for a disk that cannot. */
static void test_a_write_that_fails_is_an_io_error(void)
{
	struct pv_block_config config = {.fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC)};
	struct device d;

	make(&d, &config);
	start(&d, FEATURES, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	unmake(&d);
}

/* The file itself does not mind, so that only the engine's own care is seen: bytes of neighbouring
 * sectors that a read-change-write of whole units must not lose. */
static void test_whatever_the_alignment(void)
{
	static const uint32_t SECTOR[] = {0, 1, 7, 8, 9, 15}, LENGTH[] = {512, 1024, 4096, 8192, 61440};
	struct pv_block_config config = {.fd = -1, .offset_align = 4096, .memory_align = 512};
	struct device d;
	char *image = malloc(SECTORS * 512), *check = malloc(SECTORS * 512);
	unsigned seed = 0;

	make(&d, &config);
	start(&d, FEATURES, 1);
	memset(image, 0, SECTORS * 512);
	for (unsigned s = 0; s < 6; s++) {
		for (unsigned l = 0; l < 5; l++) {
			char *out = data_at(&d, 512 + seed % 3), *in = data_at(&d, 2 * DATA + seed % 5);

			fill(out, LENGTH[l], ++seed);
			memcpy(image + SECTOR[s] * 512, out, LENGTH[l]);
			CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, SECTOR[s], out, LENGTH[l], NULL), 0);
			CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, SECTOR[s], in, LENGTH[l], NULL), 0);
			CHECK_EQ(memcmp(in, out, LENGTH[l]), 0);
		}
	}
	CHECK_EQ(pread(d.file, check, SECTORS * 512, 0), SECTORS * 512);
	CHECK_EQ(memcmp(check, image, SECTORS * 512), 0);
	CHECK_EQ(lseek(d.file, 0, SEEK_END), SECTORS * 512);
	unmake(&d);
	free(image);
	free(check);
}

/* On a file system without direct I/O there is nothing to see here. */
static void test_direct_io_to_any_buffer(void)
{
	struct pv_block_config config = {.fd = make_file(SECTORS * 512)};
	struct device d;
	uint8_t *status;
	char path[64];
	int direct;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", config.fd);
	direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	close(config.fd);
	if (direct < 0)
		return;
	config.fd = direct;
	CHECK_EQ(pv_block_alignment(direct, &config.offset_align, &config.memory_align), 0);
	CHECK(config.offset_align >= 512 && config.offset_align <= 4096);
	make(&d, &config);
	start(&d, FEATURES, 1);
	for (uint32_t shift = 0; shift < 4; shift++) {
		char *out = data_at(&d, 1024 + shift), *in = data_at(&d, 2 * DATA + 3 * shift);

		fill(out, DATA / 2, shift);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 8 + shift, out, DATA / 2, NULL), 0);
		CHECK_EQ(ask(&d, VIRTIO_BLK_T_IN, 8 + shift, in, DATA / 2, NULL), 0);
		CHECK_EQ(memcmp(in, out, DATA / 2), 0);
	}
	/* Segments that begin well and end badly. */
	status = status_byte(&d, 0);
	struct part odd[] = {{header(&d, 0, VIRTIO_BLK_T_IN, 8), 16, false},
	                     {data_at(&d, 0), 100, true},
	                     {data_at(&d, 4096), 412, true},
	                     {status, 1, true}};
	offer(&d, &d.queues[0], odd, 4);
	kick(&d.queues[0]);
	WAIT_FOR(used(&d.queues[0]) == d.queues[0].offered);
	CHECK_EQ(*status, VIRTIO_BLK_S_OK);
	unmake(&d);
}

static void test_without_flushes_a_write_is_stable_at_once(void)
{
	struct pv_block_config config = {.fd = open("/dev/zero", O_RDWR | O_CLOEXEC)};
	struct device d;

	/* A character device cannot be synchronised: the error shows that it was tried. */
	make(&d, &config);
	start(&d, 0, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_IOERR);
	check_lives(&d);
	stop(&d);
	start(&d, FEATURES, 1);
	CHECK_EQ(ask(&d, VIRTIO_BLK_T_OUT, 0, data_at(&d, 0), 512, NULL), VIRTIO_BLK_S_OK);
	unmake(&d);
}

static void test_stop_completes_what_is_in_flight(void)
{
	struct device d;
	struct queue *q = &d.queues[0];

	make_started(&d, 0);
	for (unsigned round = 0; round < 30; round++) {
		uint8_t *status[SIZE / 4];
		uint16_t answered;

		for (unsigned i = 0; i < SIZE / 4; i++) {
			fill(data_at(&d, i * 4096), 4096, i + round);
			status[i] = request(&d, q, i, VIRTIO_BLK_T_OUT, i * 8, data_at(&d, i * 4096),
			                    4096);
		}
		kick(q);
		pv_block_stop(d.block);
		CHECK_EQ(pv_virtqueue_in_flight(q->ring), 0);
		answered = used(q);
		for (unsigned i = 0; i < SIZE / 4; i++) {
			char check[4096];

			CHECK_EQ(*status[i], i < answered ? VIRTIO_BLK_S_OK : UNANSWERED);
			CHECK_EQ(pread(d.file, check, 4096, i * 4096), 4096);
			CHECK(i >= answered || memcmp(check, data_at(&d, i * 4096), 4096) == 0);
		}
		stop(&d);
		start(&d, FEATURES, 1);
	}
	unmake(&d);
}

static void test_several_queues_at_once(void)
{
	struct pv_block_config config = {.fd = -1};
	struct pv_block_stats stats;
	struct device d;

	make(&d, &config);
	start(&d, FEATURES, QUEUES);
	for (unsigned round = 0; round < 50; round++) {
		for (unsigned i = 0; i < QUEUES * 16; i++) {
			char *data = data_at(&d, 4 * DATA + i * 2048);

			fill(data, 2048, i + round);
			request(&d, &d.queues[i % QUEUES], i,
			        round % 2 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT,
			        round % 2 ? i * 4 : i * 4, data, 2048);
			if (i % 8 < QUEUES)
				kick(&d.queues[i % QUEUES]);
		}
		for (unsigned i = 0; i < QUEUES; i++) {
			kick(&d.queues[i]);
			WAIT_FOR(used(&d.queues[i]) == d.queues[i].offered);
		}
		for (unsigned i = 0; round % 2 && i < QUEUES * 16; i++) {
			char check[2048];

			fill(check, 2048, i + round - 1);
			CHECK_EQ(memcmp(check, data_at(&d, 4 * DATA + i * 2048), 2048), 0);
		}
	}
	pv_block_stats(d.block, &stats);
	CHECK_EQ(stats.reads, 25 * QUEUES * 16);
	CHECK_EQ(stats.writes, 25 * QUEUES * 16);
	CHECK_EQ(stats.bytes_read, stats.reads * 2048);
	CHECK_EQ(stats.errors, 0);
	CHECK_EQ(stats.interrupts, pv_virtio_irq_count(d.irq));
	CHECK(stats.interrupts > 0 && stats.interrupts <= stats.reads + stats.writes);
	unmake(&d);
}

static void test_a_batch_has_one_interrupt(void)
{
	struct device d;
	struct queue *q = &d.queues[0];
	struct pv_block_stats stats;

	/* Answered without the file, so that the whole batch is one. */
	make_started(&d, 0);
	stop(&d);
	make_queue(&d, 0);
	for (unsigned i = 0; i < 16; i++)
		request(&d, q, i, VIRTIO_BLK_T_GET_ID, 0, data_at(&d, i * 32), 20);
	struct pv_block_queue served = {q->ring, q->kick_fd};
	CHECK_EQ(pv_block_start(d.block, FEATURES, &served, 1, d.irq), 0);
	WAIT_FOR(used(q) == 16);
	pv_block_stop(d.block);
	pv_block_stats(d.block, &stats);
	CHECK_EQ(stats.others, 16);
	CHECK_EQ(stats.interrupts, 1);
	q->avail->flags = PV_AVAIL_NO_INTERRUPT;
	CHECK_EQ(pv_block_start(d.block, FEATURES, &served, 1, d.irq), 0);
	ask(&d, VIRTIO_BLK_T_GET_ID, 0, data_at(&d, 0), 20, NULL);
	pv_block_stop(d.block);
	pv_block_stats(d.block, &stats);
	CHECK_EQ(stats.interrupts, 1);
	CHECK_EQ(stats.suppressed, 1);
	unmake(&d);
}

static void test_throttled_requests_wait_and_a_stop_does_not(void)
{
	struct pv_block_config config = {.fd = -1, .iops = 20};
	struct pv_block_stats stats;
	struct device d;
	struct queue *q = &d.queues[0];
	uint64_t before;

	make(&d, &config);
	start(&d, FEATURES, 1);
	before = now_ns();
	for (unsigned i = 0; i < 6; i++)
		check_lives(&d);
	/* The bucket holds two: four had to wait for 50 ms each. */
	CHECK(now_ns() - before >= 190 * 1000000);
	for (unsigned i = 0; i < 20; i++)
		request(&d, q, i, VIRTIO_BLK_T_IN, 0, data_at(&d, 0), 512);
	kick(q);
	usleep(1000);
	before = now_ns();
	pv_block_stop(d.block);
	CHECK(now_ns() - before < UINT64_C(800) * 1000000);
	CHECK_EQ(pv_virtqueue_in_flight(q->ring), 0);
	pv_block_stats(d.block, &stats);
	CHECK(stats.throttled >= 4);
	unmake(&d);
}

static void test_the_rate_of_a_throttle(void)
{
	static const uint32_t RATES[] = {1, 7, 100, 999, 30000, 1000000};
	struct pv_throttle throttle;

	for (unsigned i = 0; i < sizeof(RATES) / sizeof(RATES[0]); i++) {
		uint64_t now = 5000, end = now + UINT64_C(10000000000);
		uint32_t taken = 0, most = RATES[i] / 10 > 1 ? RATES[i] / 10 : 1;

		pv_throttle_init(&throttle, RATES[i]);
		while (now < end) {
			uint64_t wait = pv_throttle_take(&throttle, now);

			taken += wait == 0;
			now += wait;
		}
		/* Ten seconds' worth to one part in a thousand, and what the bucket held. */
		CHECK(taken >= 10 * RATES[i]);
		CHECK(taken <= 10 * RATES[i] + RATES[i] / 100 + most + 1);
	}
	pv_throttle_init(&throttle, 0);
	for (unsigned i = 0; i < 1000; i++)
		CHECK_EQ(pv_throttle_take(&throttle, 1), 0);
}

static void test_started_again_and_again(void)
{
	struct device d;

	make_started(&d, 0);
	for (unsigned i = 0; i < 100; i++) {
		check_lives(&d);
		stop(&d);
		start(&d, FEATURES, 1);
	}
	unmake(&d);
}

static void test_wrong_configurations(void)
{
	struct pv_block_config config = {.offset_align = 512, .memory_align = 3};
	struct pv_block *block;

	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	config.memory_align = 8192;
	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	config.memory_align = 0;
	CHECK_EQ(pv_block_new(&config, &block), -EINVAL);
	config.memory_align = 4096;
	CHECK_EQ(pv_block_new(&config, &block), 0);
	CHECK_EQ(pv_block_start(block, 0, NULL, 0, NULL), -EINVAL);
	pv_block_stop(block);
	pv_block_free(block);
	pv_block_free(NULL);
}

static void run_all(void)
{
	RUN(test_what_is_written_is_read_back);
	RUN(test_header_and_data_split_anyhow);
	RUN(test_a_missing_status_byte_breaks_the_device);
	RUN(test_a_short_header_breaks_the_device);
	RUN(test_a_broken_ring_breaks_the_device_and_all_its_queues);
	RUN(test_beyond_capacity);
	RUN(test_half_sectors_are_refused);
	RUN(test_unknown_requests_are_unsupported);
	RUN(test_serial_number);
	RUN(test_read_only);
	RUN(test_hostile_ranges);
	RUN(test_ranges_that_were_not_negotiated);
	RUN(test_zeroed_ranges);
	RUN(test_zeroes_are_written_where_ranges_cannot_be);
	RUN(test_zeroes_are_detected);
	RUN(test_a_full_disk_is_an_io_error);
	RUN(test_a_shrunk_file_is_an_io_error);
	RUN(test_a_write_that_fails_is_an_io_error);
	RUN(test_whatever_the_alignment);
	RUN(test_direct_io_to_any_buffer);
	RUN(test_without_flushes_a_write_is_stable_at_once);
	RUN(test_stop_completes_what_is_in_flight);
	RUN(test_several_queues_at_once);
	RUN(test_a_batch_has_one_interrupt);
	RUN(test_throttled_requests_wait_and_a_stop_does_not);
	RUN(test_started_again_and_again);
}

int main(void)
{
	RUN(test_wrong_configurations);
	RUN(test_the_rate_of_a_throttle);
	fprintf(stderr, "- io_uring\n");
	run_all();
	engine_flag = PV_BLOCK_THREADS;
	fprintf(stderr, "- threads\n");
	run_all();
	return 0;
}
