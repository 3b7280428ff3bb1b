/* So many random reads of 4 KiB of a disk, so many at a time, each asked for when one has ended.
 *
 *     disk_reads DEVICE DEPTH REQUESTS     prints how many there were
 *
 * Static, so that it runs in a guest that has no C library, and starts in few instructions. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BYTES = 4096, DEPTH_MAX = 128, SPAN = 1 << 18 };

static _Alignas(BYTES) char data[DEPTH_MAX][BYTES];
static struct iocb requests[DEPTH_MAX];
static uint32_t random_state = 2463534242;

static uint32_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static int submit(aio_context_t context, struct iocb *request)
{
    request->aio_offset = (int64_t)(next_random() % SPAN) * BYTES;
    return syscall(SYS_io_submit, context, 1, &request) == 1 ? 0 : -1;
}

static int run(aio_context_t context, long depth, long count)
{
    struct io_event events[DEPTH_MAX];
    long begun = 0, ended = 0;

    for (; begun < depth && begun < count; begun++)
        if (submit(context, &requests[begun]))
            return -1;
    while (ended < count) {
        long got = syscall(SYS_io_getevents, context, 1, depth, events, NULL);

        if (got < 1)
            return -1;
        ended += got;
        for (long i = 0; i < got; i++) {
            if (events[i].res != BYTES)
                return -1;
            if (begun < count && submit(context, (struct iocb *)(uintptr_t)events[i].obj))
                return -1;
            begun += begun < count;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    long depth = argc == 4 ? atol(argv[2]) : 0;
    aio_context_t context = 0;
    int fd;

    if (depth < 1 || depth > DEPTH_MAX) {
        fputs("usage: disk_reads DEVICE DEPTH REQUESTS\n", stderr);
        return 2;
    }
    fd = open(argv[1], O_RDONLY | O_DIRECT);
    for (long i = 0; i < depth; i++)
        requests[i] = (struct iocb){
            .aio_lio_opcode = IOCB_CMD_PREAD,
            .aio_fildes = (uint32_t)fd,
            .aio_buf = (uintptr_t)data[i],
            .aio_nbytes = BYTES,
        };
    if (fd < 0 || syscall(SYS_io_setup, depth, &context) || run(context, depth, atol(argv[3]))) {
        perror("disk_reads");
        return 1;
    }
    puts(argv[3]);
    return 0;
}
