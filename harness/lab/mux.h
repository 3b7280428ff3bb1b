/*
 * The lab's protocol: several byte streams over one.
 *
 * A frame is an 8-byte header (channel u16, kind u16, length u32, little endian) and
 * `length` bytes of payload. "host" is the client that started the lab.
 *
 *   kind      sent by  channel   payload
 *   HELLO     agent    0         version u32
 *   ARG       host     0         one argument of the command, in order, no NUL
 *   ENV       host     0         one NAME=VALUE of its environment
 *   CWD       host     0         its working directory
 *   START     host     0         terminal mask u16 (bit 0, 1, 2: that descriptor is the
 *                                terminal), umask u16, rows u16, columns u16
 *   FAILED    agent    0         stage u32, errno u32: the command could not be started
 *   EXIT      agent    0         exit status u32 (128+N after signal N); all its output
 *                                has been sent before
 *   ALIVE     both     0         nothing; the agent's, about once a second, so that a lab that hangs
 *                                is noticed; the host's, more often, to keep it from hanging
 *   WINSIZE   host     0         rows u16, columns u16
 *   SIGNAL    host     0         signal number u32, for the command's process group
 *   OPEN      host     16..79    path of a Unix socket in the lab, to be connected
 *   DATA      both     1..79     bytes, within the credit
 *   CREDIT    both     1..79     u32: so many more bytes may be sent
 *   EOF       both     1..79     the sender has no more data
 *   CLOSE     both     1..79     the sender is through with the channel
 *
 * Channels 1 to 4 are the command's stdin, stdout, stderr and terminal; START opens those
 * that its mask calls for. Each direction of a channel starts with WINDOW bytes of credit
 * and a sender never exceeds it, so a receiver always has room, always reads, and one
 * stream that is stuck holds up no other. A channel number is free again when CLOSE has
 * gone both ways; frames that arrive in between are dropped.
 */
#ifndef PYVIRT_LAB_MUX_H
#define PYVIRT_LAB_MUX_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

enum { MUX_VERSION = 3 };

enum mux_kind {
    KIND_HELLO = 1,
    KIND_ARG,
    KIND_ENV,
    KIND_CWD,
    KIND_START,
    KIND_FAILED,
    KIND_EXIT,
    KIND_WINSIZE,
    KIND_SIGNAL,
    KIND_OPEN,
    KIND_DATA,
    KIND_CREDIT,
    KIND_EOF,
    KIND_CLOSE,
    KIND_ALIVE,
};

enum mux_channel {
    CH_CONTROL,
    CH_STDIN,
    CH_STDOUT,
    CH_STDERR,
    CH_TERMINAL,
    CH_SOCKET = 16,
    CH_COUNT = 80,
};

enum {
    MUX_HEADER = 8,
    MUX_WINDOW = 1048576,
    MUX_TEXT_MAX = 131072, /* the longest string that execve takes */
    MUX_RX_SIZE = MUX_HEADER + MUX_TEXT_MAX,
    MUX_TX_SIZE = 65536,
    MUX_POLLS = 2 + 2 * CH_COUNT,
};

/* One channel; `ring` holds what has been received and not yet written to `sink`. */
struct channel {
    int source; /* read, and sent to the host; -1: none (left) */
    int sink;   /* written with what the host sent; -1: none (left) */
    uint8_t *ring;
    uint32_t head, fill;
    uint32_t credit; /* bytes that may still be sent */
    uint32_t owed;   /* bytes taken from the ring since the last CREDIT */
    uint64_t sent;   /* bytes, since it was opened */
    bool used, eof_sent, eof_received, close_sent, close_received;
    int64_t deadline; /* not 0: still connecting to `peer`, until this time in ms */
    struct sockaddr_un peer;
};

struct frame {
    uint16_t channel, kind;
    uint32_t length;
    const uint8_t *payload;
};

struct mux {
    int port;
    struct channel channels[CH_COUNT];
    uint32_t rx_len, tx_len;
    uint8_t rx[MUX_RX_SIZE], tx[MUX_TX_SIZE];
    struct pollfd polls[MUX_POLLS];
    uint16_t owners[MUX_POLLS]; /* the channel of each entry of `polls` */
    nfds_t n_polls, turn;
};

/* Takes a frame on channel 0; returns 0 or -errno, which ends the connection. */
typedef int (*mux_control_fn)(void *context, const struct frame *frame);

/* `port` is non-blocking and stays the caller's. */
void mux_init(struct mux *m, int port);

/* Closes every descriptor that a channel owns. */
void mux_free(struct mux *m);

/*
 * Opens channel `n`, which now owns `source` and `sink` (non-blocking; -1: that direction
 * is over). 0, -EBUSY or -ENOMEM; on failure the descriptors stay the caller's.
 */
int mux_open(struct mux *m, uint16_t n, int source, int sink);

/* Queues a frame on channel 0 of one or two u32; -ENOSPC when there is no room just now. */
int mux_control(struct mux *m, enum mux_kind kind, const uint32_t *words, uint32_t count);

/*
 * One turn: sends what is due, waits up to `timeout_ms` (-1: for ever), moves data.
 * `extra` (may be -1) is waited for too. Returns 1 when the host has gone, 0, or -errno
 * (-EPROTO: a frame that breaks the rules).
 */
int mux_turn(struct mux *m, int extra, int timeout_ms, mux_control_fn control, void *context);

#endif
