/* The host's side of a serial port: rings of bytes between a device and file descriptors.
 *
 * vCPU threads put bytes into a 64 KiB ring and never wait; one thread of the console's own writes
 * them out, reads input into a second ring, and tells the device what has become possible. It
 * blocks all signals and never touches Python. All functions here may be called by any thread,
 * but not two of them at once on one console; statistics and the stamp may be read at any time.
 *
 * A prompt is written at once; what follows within 1 ms is gathered, up to 16 ms in a steady flow.
 * Output that nobody takes (no client, a closed pipe) never holds the guest up: the newest
 * 16 to 32 KiB are kept, and a client that comes later is shown them first. */
#ifndef PV_CONSOLE_H
#define PV_CONSOLE_H

#include <stdbool.h>
#include <stdint.h>

/* Act on Ctrl-A in the input: X quit, B break, H help, Ctrl-A or A one Ctrl-A. */
#define PV_CONSOLE_ESCAPE 1

#define PV_CONSOLE_RING 65536 /* bytes of output, and of input, that wait at most */

struct pv_console;
struct pv_ringbuf;

/* All descriptors are borrowed, duplicated before pv_console_start returns; -1 for none.
 * `in_fd` and `out_fd` may be the same, and their file status flags are left as they are. The end
 * of input ends input alone. `listen_fd` is a listening stream socket: whenever neither input nor
 * output is open, the next client is accepted. `quit_fd` is an eventfd to which 1 is added when the
 * user asks to quit. `ringbuf` takes the output in place of `out_fd`, which is open all the same;
 * it is borrowed until pv_console_stop. */
struct pv_console_config {
	int in_fd;
	int out_fd;
	int listen_fd;
	int quit_fd;
	uint32_t flags;
	struct pv_ringbuf *ringbuf;
};

/* Bytes that went out and came in, that a full ring lost (the guest wrote without looking at its
 * line status), that nobody was there to take; the positive errno that ended output, or 0. */
struct pv_console_stats {
	uint64_t bytes_out;
	uint64_t bytes_in;
	uint64_t bytes_dropped;
	uint64_t bytes_discarded;
	uint32_t out_errno;
};

/* -ENOMEM or what eventfd(2) says. Free after the device that uses it. */
int pv_console_new(struct pv_console **out);
void pv_console_free(struct pv_console *console);

/* Start the thread. -EBUSY when it runs; -EBADF for a descriptor that is not open the right way;
 * what pthread_create(3) says. Does not survive a fork. */
int pv_console_start(struct pv_console *console, const struct pv_console_config *config);

/* Wait until every byte put so far is written, or nobody is there to take it. -ETIMEDOUT after
 * `timeout_ms` milliseconds. */
int pv_console_flush(struct pv_console *console, uint32_t timeout_ms);

/* End the thread and close its descriptors; bounded, whatever the output does. What is still in
 * the ring stays there. Without a thread: nothing. */
void pv_console_stop(struct pv_console *console);

/* Copy what waits into buffers of PV_CONSOLE_RING bytes; how much that is. Any thread, while the
 * device puts and takes nothing. */
uint32_t pv_console_save_output(const struct pv_console *console, uint8_t *data);
uint32_t pv_console_save_input(const struct pv_console *console, uint8_t *data);
/* Let that wait which waited elsewhere, in a console that nobody has used. -EBUSY: the thread runs;
 * -EINVAL: it is more than there is room for. */
int pv_console_restore(struct pv_console *console, const uint8_t *output, uint32_t output_bytes,
                       const uint8_t *input, uint32_t input_bytes);

/* Whether somebody is there to take output; any thread. */
bool pv_console_is_taken(const struct pv_console *console);

void pv_console_stats(const struct pv_console *console, struct pv_console_stats *stats);

/* When the guest's first byte came, in nanoseconds of CLOCK_MONOTONIC; 0: not yet. */
uint64_t pv_console_first_output_ns(const struct pv_console *console);

#endif
