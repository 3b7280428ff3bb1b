/* A fuzz target: the input is a driver that keeps no rule, on the queue of a disk, and a host that
 * completes operations in any order, in part, or not at all. Every fault that a sanitizer can see,
 * an endless loop, an operation beyond the image, outside of the guest's memory or not aligned as
 * direct I/O wants it, a write to an image that is only to be read, and a request that is lost ends
 * the run.
 *
 *     make fuzz TARGET=block
 *
 * The first bytes choose the disk; then come instructions, a byte and what it takes. */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/internal.h"
#include "fuzz/driver.h"

enum { QUEUE };
enum { SECTORS = 64, BYTES = SECTORS * PV_SECTOR, BOUNCE = 256 * 1024 };
/* In guest memory, behind the queue. */
enum { HEADERS_AT = 0x1000, STATUS_AT = 0x1200, RANGES_AT = 0x1300, DATA_AT = 0x2000 };

/* The engine comes first, so that this is what its operations are handed. */
struct bench {
	struct pv_engine engine;
	struct driver driver;
	struct pv_block *block;
	struct pv_block_worker worker;
	struct pv_overlay *overlay;
	int fd, layer_fd;
	struct pv_io *begun[SIZE];
	unsigned count;
	uint16_t head; /* of the next request that means well */
	bool refuses;  /* to begin operations */
	bool over;
};

static bool is_bounced(const struct pv_io *io, const struct iovec *iov)
{
	const uint8_t *at = iov->iov_base;
	const uint8_t *bounce = ((const struct pv_block_request *)(const void *)io)->bounce;

	return bounce && at >= bounce && at + iov->iov_len <= bounce + BOUNCE;
}

static uint64_t check_segments(const struct bench *bench, const struct pv_io *io)
{
	const struct pv_block_file *file = &bench->block->file;
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < io->count; i++) {
		const struct iovec *iov = &io->iov[i];

		REQUIRE(iov->iov_len > 0);
		/* Zeroes to be written are the device's own. */
		REQUIRE(io->kind == PV_IO_WRITE || inside(&bench->driver, iov) || is_bounced(io, iov));
		if (io->fd == bench->fd) {
			REQUIRE(((uintptr_t)iov->iov_base & (file->memory_align - 1)) == 0);
			REQUIRE((iov->iov_len & (file->offset_align - 1)) == 0);
		}
		bytes += iov->iov_len;
	}
	return bytes;
}

static void check_operation(const struct bench *bench, const struct pv_io *io)
{
	const struct pv_block_file *file = &bench->block->file;
	bool changes = io->kind != PV_IO_READ && io->kind != PV_IO_SYNC;
	uint64_t bytes = io->length;

	REQUIRE(io->fd == (bench->overlay && changes ? bench->layer_fd : bench->fd) || !changes);
	REQUIRE(!changes || !bench->block->limits.readonly);
	if (io->kind == PV_IO_SYNC)
		return;
	if (io->kind == PV_IO_READ || io->kind == PV_IO_WRITE)
		bytes = check_segments(bench, io);
	REQUIRE(bytes > 0 && io->offset <= BYTES && bytes <= BYTES - io->offset);
	if (io->fd == bench->fd)
		REQUIRE(((io->offset | bytes) & (file->offset_align - 1)) == 0);
}

static int start(struct pv_engine *engine, struct pv_io *io)
{
	struct bench *bench = (struct bench *)engine;

	check_operation(bench, io);
	if (bench->refuses)
		return -EIO;
	REQUIRE(bench->count < SIZE);
	bench->begun[bench->count++] = io;
	return 0;
}

static const struct pv_engine_ops ENGINE = {.start = start};

static int make_file(uint64_t bytes)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	REQUIRE(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	return fd;
}

static void make_worker(struct bench *bench)
{
	struct pv_block_worker *w = &bench->worker;

	w->member.ops = &PV_BLOCK_OPS;
	w->member.engine = &bench->engine;
	w->block = bench->block;
	w->ring = make_queue(&bench->driver, QUEUE).ring;
	w->counters = &bench->block->counters[0];
	w->faults.rules = pv_virtio_irq_faults(bench->driver.irq);
	w->requests = calloc(SIZE, sizeof(*w->requests));
	REQUIRE(w->requests);
}

static struct bench *bench_new(struct input *input)
{
	static const uint32_t ALIGNS[] = {1, 512, 4096, 512};
	struct bench *bench = calloc(1, sizeof(*bench));
	uint8_t choice = (uint8_t)take(input, 1), features = (uint8_t)take(input, 1);
	struct pv_block_config config = {.sectors = SECTORS};

	REQUIRE(bench);
	driver_init(&bench->driver, choice & 1);
	bench->engine.ops = &ENGINE;
	bench->fd = config.fd = make_file(BYTES);
	bench->layer_fd = -1;
	config.offset_align = ALIGNS[choice >> 1 & 3];
	config.memory_align = ALIGNS[choice >> 3 & 3];
	config.flags = features >> 3 & (PV_BLOCK_READONLY | PV_BLOCK_UNMAP | PV_BLOCK_DETECT_ZEROES |
	                                PV_BLOCK_DETECT_UNMAP);
	if (choice & 0x20) {
		bench->layer_fd = make_file(0);
		REQUIRE(pv_overlay_new(bench->layer_fd, SECTORS, NULL, &bench->overlay) == 0);
		bench->overlay->in_memory = choice >> 6 & 1;
		config.overlay = bench->overlay;
	}
	REQUIRE(pv_block_new(&config, &bench->block) == 0);
	bench->block->irq = bench->driver.irq;
	bench->block->limits.features = (features & UINT64_C(1)) << VIRTIO_BLK_F_FLUSH |
	                                (features >> 1 & UINT64_C(1)) << VIRTIO_BLK_F_DISCARD |
	                                (features >> 2 & UINT64_C(1)) << VIRTIO_BLK_F_WRITE_ZEROES;
	bench->block->file.write_through = (features & 1) == 0;
	make_worker(bench);
	return bench;
}

static void order(struct bench *bench, enum pv_block_phase phase)
{
	uint32_t before = atomic_load(&bench->block->order);

	atomic_store(&bench->block->order, (before / PV_BLOCK_PHASES + 1) * PV_BLOCK_PHASES + phase);
}

static void serve(struct bench *bench)
{
	bench->over = PV_BLOCK_OPS.serve(&bench->worker.member) == PV_SERVE_END;
	if (bench->over)
		REQUIRE(bench->count == 0 && atomic_load(&bench->worker.in_flight) == 0);
}

/* Hand an operation back. */
static void finish(struct bench *bench, unsigned place, int64_t result)
{
	struct pv_io *io = bench->begun[place];
	bool is_given_up = pv_block_phase(bench->block) == PV_BLOCK_GIVEN_UP;
	uint8_t *before = is_given_up ? malloc(RAM) : NULL;

	bench->begun[place] = bench->begun[--bench->count];
	if (before)
		memcpy(before, bench->driver.ram, RAM);
	io->result = result;
	PV_BLOCK_OPS.complete(&bench->worker.member, io);
	/* The guest may use that memory for something else. */
	if (before)
		REQUIRE(memcmp(before, bench->driver.ram, RAM) == 0);
	free(before);
}

/* What a host may say of an operation. */
static int64_t result_of(const struct bench *bench, const struct pv_io *io, uint8_t choice)
{
	static const int ERRORS[] = {-EIO, -EINTR, -EAGAIN, -EOPNOTSUPP, -EINVAL, -ENOSPC};
	const struct pv_block_file *file = &bench->block->file;
	int64_t result;

	if (choice < 32)
		return ERRORS[choice % 6];
	/* All of it is done, as far as the device can tell; only a host writes to the guest still. */
	if (pv_block_phase(bench->block) == PV_BLOCK_GIVEN_UP)
		return io->kind <= PV_IO_WRITE ? (int64_t)check_segments(bench, io) : 0;
	result = pv_io_run(io);
	/* Less than was asked for, as direct I/O may have it. */
	if (choice < 64 && file->memory_align <= file->offset_align && result > 0)
		result = result * choice / 64 & ~(int64_t)(file->offset_align - 1);
	return result;
}

static void finish_one(struct bench *bench, struct input *input)
{
	uint8_t choice = (uint8_t)take(input, 1);
	unsigned place;

	if (bench->count == 0)
		return;
	place = choice % bench->count;
	finish(bench, place, result_of(bench, bench->begun[place], choice));
}

static void bench_free(struct bench *bench)
{
	struct stat status;

	bench->refuses = false;
	if (!bench->over && pv_block_phase(bench->block) < PV_BLOCK_STOPPING)
		order(bench, PV_BLOCK_STOPPING);
	for (unsigned i = 0; !bench->over; i++) {
		REQUIRE(i < 8);
		serve(bench);
		while (bench->count > 0)
			finish(bench, 0, -EIO);
	}
	REQUIRE(fstat(bench->fd, &status) == 0 && status.st_size == BYTES);
	pv_block_free(bench->block);
	pv_overlay_free(bench->overlay);
	free(bench->worker.requests);
	driver_destroy(&bench->driver);
	close(bench->fd);
	if (bench->layer_fd >= 0)
		close(bench->layer_fd);
	free(bench);
}

/* Data of a read or a write; return how many descriptors. */
static unsigned add_data(struct input *input, struct pv_desc *descs, unsigned count, bool in)
{
	for (unsigned i = 0; i < count; i++) {
		uint8_t place = (uint8_t)take(input, 1), size = (uint8_t)take(input, 1);

		descs[i].address = DATA_AT + place * 64u;
		descs[i].length = size & 0x80 ? size & 0x7f : (size & 0x1f) * PV_SECTOR;
		descs[i].flags = in ? PV_DESC_WRITE : 0;
	}
	return count;
}

/* Ranges to be zeroed. */
static unsigned add_ranges(struct bench *bench, struct input *input, struct pv_desc *desc,
                           unsigned count)
{
	struct virtio_blk_discard_write_zeroes range = {0};

	desc->address = RANGES_AT;
	desc->length = (uint32_t)(count * sizeof(range));
	for (unsigned i = 0; i < count; i++) {
		range.sector = take(input, 1) % (SECTORS + 2);
		range.num_sectors = (uint32_t)take(input, 1) % (SECTORS + 2);
		range.flags = (uint32_t)take(input, 1) % 3;
		memcpy(bench->driver.ram + RANGES_AT + i * sizeof(range), &range, sizeof(range));
	}
	return 1;
}

/* A request that means well in most of its fields, that the rest is reached. */
static void send_request(struct bench *bench, struct input *input)
{
	static const uint32_t TYPES[] = {VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,
	                                 VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,
	                                 VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES,
	                                 VIRTIO_BLK_T_FLUSH,   VIRTIO_BLK_T_GET_ID};
	uint8_t choice = (uint8_t)take(input, 1);
	uint16_t head = bench->head++ % SIZE;
	struct virtio_blk_outhdr header = {.type = TYPES[choice % 8]};
	struct pv_desc descs[CHAIN_DESCS] = {{HEADERS_AT + head * sizeof(header), sizeof(header), 0, 0}};
	bool in = header.type == VIRTIO_BLK_T_IN || header.type == VIRTIO_BLK_T_GET_ID;
	bool zeroes = header.type == VIRTIO_BLK_T_DISCARD || header.type == VIRTIO_BLK_T_WRITE_ZEROES;
	unsigned count = choice >> 3 & 3;

	header.sector = take(input, 1) % (SECTORS + 2);
	memcpy(bench->driver.ram + descs[0].address, &header, sizeof(header));
	/* At times more ranges than there may be. */
	count = zeroes && count == 3 ? PV_BLOCK_RANGES + 1 : count;
	count = 1 + (zeroes ? add_ranges(bench, input, &descs[1], count)
	                    : add_data(input, &descs[1], count, in));
	descs[count++] = (struct pv_desc){STATUS_AT + head, 1, PV_DESC_WRITE, 0};
	offer_chain(&bench->driver, QUEUE, head, descs, count);
}

static void command(struct bench *bench, uint8_t choice)
{
	enum pv_block_phase phase = pv_block_phase(bench->block);

	if (phase == PV_BLOCK_STOPPING && choice == 0)
		order(bench, PV_BLOCK_GIVEN_UP);
	else if (phase < PV_BLOCK_STOPPING && choice == 1)
		order(bench, PV_BLOCK_STOPPING);
	else if (phase < PV_BLOCK_STOPPING)
		order(bench, choice & 1 ? PV_BLOCK_SERVING : PV_BLOCK_DRAINING);
}

static void change_faults(struct bench *bench, struct input *input)
{
	uint8_t choice = (uint8_t)take(input, 1);
	struct pv_fault fault = {.kind = choice % 8, .ops = (uint32_t)take(input, 1), .every = 1};

	fault.error = choice & 0x10 ? EOPNOTSUPP : EIO;
	fault.delay_ns = choice & 0x20 ? UINT64_C(3600000000000) : 1;
	fault.offset = take(input, 1);
	fault.last = UINT64_MAX;
	fault.count = choice >> 6;
	if (fault.kind == 0)
		(void)pv_faults_remove(bench->worker.faults.rules, 0);
	else
		(void)pv_faults_add(bench->worker.faults.rules, &fault);
}

static void check(const struct bench *bench)
{
	uint32_t in_flight = atomic_load(&bench->worker.in_flight);
	uint16_t in_ring = pv_virtqueue_in_flight(bench->driver.rings[QUEUE]);

	REQUIRE(bench->count <= in_flight);
	if (pv_block_phase(bench->block) == PV_BLOCK_GIVEN_UP)
		return;
	REQUIRE(in_flight <= in_ring);
	REQUIRE(in_flight == in_ring || atomic_load(&bench->block->broken));
}

static void instruct(struct bench *bench, struct input *input)
{
	uint8_t code = (uint8_t)take(input, 1);
	unsigned what = code % 16;

	switch (what) {
	case 0:
	case 1:
	case 2:
	case 3:
		drive(&bench->driver, input, what, QUEUE);
		break;
	case 4:
	case 5:
	case 6:
	case 7:
		send_request(bench, input);
		break;
	case 8:
	case 9:
	case 10:
		finish_one(bench, input);
		break;
	case 11:
		command(bench, (uint8_t)(code / 16));
		break;
	case 12:
		change_faults(bench, input);
		break;
	case 13:
		bench->refuses = code / 16 == 1;
		break;
	default:
		serve(bench);
	}
	check(bench);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct bench *bench = bench_new(&input);

	while (input.size > 0 && !bench->over)
		instruct(bench, &input);
	bench_free(bench);
	return 0;
}
