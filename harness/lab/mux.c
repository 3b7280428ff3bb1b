#define _GNU_SOURCE
#include "mux.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CHUNK = 16384,             /* most bytes of one DATA frame that is sent */
    CREDIT_STEP = MUX_WINDOW / 4, /* fewer bytes are not worth a CREDIT */
    CONNECT_MS = 30000, /* how long OPEN waits for the socket's owner, slow as the lab is */
    RETRY_MS = 20,
};

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static uint32_t min32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Sending. */

static uint32_t tx_room(const struct mux *m)
{
    return MUX_TX_SIZE - m->tx_len;
}

static void tx_header(struct mux *m, uint16_t channel, enum mux_kind kind, uint32_t length)
{
    uint8_t *p = m->tx + m->tx_len;

    put32(p, channel | (uint32_t)kind << 16);
    put32(p + 4, length);
    m->tx_len += MUX_HEADER + length;
}

static bool tx_empty_frame(struct mux *m, uint16_t channel, enum mux_kind kind)
{
    if (tx_room(m) < MUX_HEADER)
        return false;
    tx_header(m, channel, kind, 0);
    return true;
}

int mux_control(struct mux *m, enum mux_kind kind, const uint32_t *words, uint32_t count)
{
    if (tx_room(m) < MUX_HEADER + 4 * count)
        return -ENOSPC;
    for (uint32_t i = 0; i < count; i++)
        put32(m->tx + m->tx_len + MUX_HEADER + 4 * i, words[i]);
    tx_header(m, CH_CONTROL, kind, 4 * count);
    return 0;
}

/* What a failed read or write of the port means: 1 for a host that has gone. */
static int port_error(void)
{
    if (errno == EAGAIN || errno == EINTR)
        return 0;
    return errno == EPIPE || errno == ECONNRESET ? 1 : -errno;
}

/* 1 when the host has gone, else 0 or -errno. */
static int tx_flush(struct mux *m)
{
    while (m->tx_len > 0) {
        ssize_t n = write(m->port, m->tx, m->tx_len);

        if (n < 0)
            return port_error();
        m->tx_len -= (uint32_t)n;
        memmove(m->tx, m->tx + n, m->tx_len);
    }
    return 0;
}

/* Channels. */

void mux_init(struct mux *m, int port)
{
    memset(m, 0, sizeof(*m));
    m->port = port;
}

static void channel_free(struct channel *c)
{
    close_fd(&c->source);
    close_fd(&c->sink);
    free(c->ring);
    memset(c, 0, sizeof(*c));
}

void mux_free(struct mux *m)
{
    for (int n = 0; n < CH_COUNT; n++)
        if (m->channels[n].used)
            channel_free(&m->channels[n]);
}

int mux_open(struct mux *m, uint16_t n, int source, int sink)
{
    struct channel *c = &m->channels[n];
    uint8_t *ring;

    if (c->used)
        return -EBUSY;
    ring = malloc(MUX_WINDOW);
    if (!ring)
        return -ENOMEM;
    *c = (struct channel){ .source = source, .sink = sink, .ring = ring,
                           .credit = MUX_WINDOW, .used = true };
    return 0;
}

/* The sink is over: what is left for it counts as taken, so that the host never waits. */
static void sink_end(struct channel *c)
{
    if (c->sink >= 0)
        shutdown(c->sink, SHUT_WR); /* a pipe answers ENOTSOCK, which is fine */
    close_fd(&c->sink);
    c->owed += c->fill;
    c->fill = 0;
}

static void sink_write(struct channel *c)
{
    while (c->fill > 0) {
        uint32_t run = min32(c->fill, MUX_WINDOW - c->head);
        ssize_t n = write(c->sink, c->ring + c->head, run);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                sink_end(c);
            return;
        }
        c->head = (c->head + (uint32_t)n) % MUX_WINDOW;
        c->fill -= (uint32_t)n;
        c->owed += (uint32_t)n;
    }
}

static void source_read(struct mux *m, uint16_t n)
{
    struct channel *c = &m->channels[n];
    uint32_t most;
    ssize_t got;

    if (tx_room(m) <= MUX_HEADER)
        return;
    most = min32(min32(c->credit, CHUNK), tx_room(m) - MUX_HEADER);
    do
        got = read(c->source, m->tx + m->tx_len + MUX_HEADER, most);
    while (got < 0 && errno == EINTR);
    if (got > 0) {
        tx_header(m, n, KIND_DATA, (uint32_t)got);
        c->credit -= (uint32_t)got;
        c->sent += (uint64_t)got;
    } else if (got == 0 || errno != EAGAIN) {
        close_fd(&c->source); /* a terminal without users answers EIO: its end of file */
    }
}

static void connect_end(struct channel *c, int fd)
{
    c->deadline = 0;
    c->source = fd;
    c->sink = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

static void connect_try(struct channel *c)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        connect_end(c, -1);
    } else if (connect(fd, (const struct sockaddr *)&c->peer, sizeof(c->peer)) == 0) {
        connect_end(c, fd);
    } else {
        close(fd);
        if (now_ms() >= c->deadline)
            connect_end(c, -1);
    }
}

/* Puts the frames that the channel owes the host into the buffer, as far as it has room. */
static void channel_emit(struct mux *m, uint16_t n)
{
    struct channel *c = &m->channels[n];

    if (c->deadline || c->close_sent)
        return;
    if (c->eof_received && c->fill == 0)
        sink_end(c);
    if (c->owed >= CREDIT_STEP && tx_room(m) >= MUX_HEADER + 4) {
        put32(m->tx + m->tx_len + MUX_HEADER, c->owed);
        tx_header(m, n, KIND_CREDIT, 4);
        c->owed = 0;
    }
    if (c->source < 0 && !c->eof_sent)
        c->eof_sent = tx_empty_frame(m, n, KIND_EOF);
    if (c->source < 0 && c->sink < 0 && c->eof_sent)
        c->close_sent = tx_empty_frame(m, n, KIND_CLOSE);
}

static void channels_emit(struct mux *m)
{
    for (uint16_t n = 1; n < CH_COUNT; n++) {
        struct channel *c = &m->channels[n];

        if (!c->used)
            continue;
        if (c->deadline)
            connect_try(c);
        channel_emit(m, n);
        if (c->close_sent && c->close_received)
            channel_free(c);
    }
}

/* Receiving. */

static int receive_open(struct mux *m, const struct frame *f)
{
    struct channel *c = &m->channels[f->channel];
    int err;

    if (f->channel < CH_SOCKET || f->length == 0 || f->length >= sizeof(c->peer.sun_path))
        return -EPROTO;
    err = mux_open(m, f->channel, -1, -1);
    if (err)
        return err == -EBUSY ? -EPROTO : err;
    c->peer.sun_family = AF_UNIX;
    memcpy(c->peer.sun_path, f->payload, f->length);
    c->deadline = now_ms() + CONNECT_MS;
    return 0;
}

static int receive_data(struct channel *c, const struct frame *f)
{
    uint32_t tail = (c->head + c->fill) % MUX_WINDOW;
    uint32_t run = min32(f->length, MUX_WINDOW - tail);

    if (c->eof_received || f->length > MUX_WINDOW - c->fill - c->owed)
        return -EPROTO;
    if (c->sink < 0 && !c->deadline) {
        c->owed += f->length;
        return 0;
    }
    memcpy(c->ring + tail, f->payload, run);
    memcpy(c->ring, f->payload + run, f->length - run);
    c->fill += f->length;
    return 0;
}

static int receive_credit(struct channel *c, const struct frame *f)
{
    uint32_t more;

    if (f->length != 4)
        return -EPROTO;
    more = get32(f->payload);
    if (more > MUX_WINDOW - c->credit)
        return -EPROTO;
    c->credit += more;
    return 0;
}

/* After an EOF, what has come before it is still written; without one, all is dropped. */
static void receive_close(struct channel *c)
{
    close_fd(&c->source);
    if (!c->eof_received)
        sink_end(c);
    c->deadline = 0;
    c->close_received = c->eof_received = c->eof_sent = true;
}

static int receive_channel(struct mux *m, const struct frame *f)
{
    struct channel *c = &m->channels[f->channel];

    if (f->kind == KIND_OPEN)
        return receive_open(m, f);
    if (!c->used || c->close_received)
        return -EPROTO;
    if (c->close_sent && f->kind != KIND_CLOSE)
        return 0;
    switch (f->kind) {
    case KIND_DATA:
        return receive_data(c, f);
    case KIND_CREDIT:
        return receive_credit(c, f);
    case KIND_EOF:
        c->eof_received = true;
        return 0;
    case KIND_CLOSE:
        receive_close(c);
        if (c->close_sent) /* now, since the next frame may open it again */
            channel_free(c);
        return 0;
    default:
        return -EPROTO;
    }
}

static int rx_frames(struct mux *m, mux_control_fn control, void *context)
{
    uint32_t at = 0;
    int err = 0;

    while (!err && m->rx_len - at >= MUX_HEADER) {
        struct frame f = { .channel = (uint16_t)get32(m->rx + at),
                           .kind = (uint16_t)(get32(m->rx + at) >> 16),
                           .length = get32(m->rx + at + 4),
                           .payload = m->rx + at + MUX_HEADER };

        if (f.channel >= CH_COUNT || f.length > MUX_TEXT_MAX)
            return -EPROTO;
        if (m->rx_len - at - MUX_HEADER < f.length)
            break;
        err = f.channel == CH_CONTROL ? control(context, &f) : receive_channel(m, &f);
        at += MUX_HEADER + f.length;
    }
    m->rx_len -= at;
    memmove(m->rx, m->rx + at, m->rx_len);
    return err;
}

/* 1 when the host has gone, else 0 or -errno. */
static int rx_read(struct mux *m, mux_control_fn control, void *context)
{
    ssize_t n = read(m->port, m->rx + m->rx_len, MUX_RX_SIZE - m->rx_len);

    if (n < 0)
        return port_error();
    if (n == 0)
        return 1;
    m->rx_len += (uint32_t)n;
    return rx_frames(m, control, context);
}

/* One turn of the loop. */

static void watch(struct mux *m, int fd, short events, uint16_t owner)
{
    m->polls[m->n_polls] = (struct pollfd){ .fd = fd, .events = events };
    m->owners[m->n_polls++] = owner;
}

/* Returns the wait in ms: short while a channel is still connecting. */
static int watch_channels(struct mux *m, int timeout_ms)
{
    for (uint16_t n = 1; n < CH_COUNT; n++) {
        const struct channel *c = &m->channels[n];

        if (!c->used)
            continue;
        if (c->deadline && (timeout_ms < 0 || timeout_ms > RETRY_MS))
            timeout_ms = RETRY_MS;
        if (c->source >= 0 && c->credit > 0 && tx_room(m) > MUX_HEADER)
            watch(m, c->source, POLLIN, n);
        if (c->sink >= 0) /* with nothing to write too: its reader may go */
            watch(m, c->sink, c->fill > 0 ? POLLOUT : 0, n);
    }
    return timeout_ms;
}

static void move(struct mux *m, const struct pollfd *p, uint16_t n)
{
    struct channel *c = &m->channels[n];

    if (p->fd == c->source) {
        if (p->revents)
            source_read(m, n);
    } else if (p->fd == c->sink) {
        if (p->revents & POLLOUT)
            sink_write(c);
        else if (p->revents)
            sink_end(c);
    }
}

/* Each turn begins with another one, so that a busy stream never takes all the room. */
static void move_all(struct mux *m)
{
    nfds_t count = m->n_polls - 2;

    m->turn++;
    for (nfds_t i = 0; i < count; i++) {
        nfds_t at = 1 + (i + m->turn) % count;

        move(m, &m->polls[at], m->owners[at]);
    }
}

int mux_turn(struct mux *m, int extra, int timeout_ms, mux_control_fn control, void *context)
{
    int ready, err;

    channels_emit(m);
    err = tx_flush(m);
    if (err)
        return err;
    m->n_polls = 0;
    watch(m, m->port, (short)(POLLIN | (m->tx_len ? POLLOUT : 0)), CH_CONTROL);
    timeout_ms = watch_channels(m, timeout_ms);
    watch(m, extra, POLLIN, CH_CONTROL);
    ready = poll(m->polls, m->n_polls, timeout_ms);
    if (ready < 0)
        return errno == EINTR ? 0 : -errno;
    move_all(m);
    if (m->polls[0].revents & (POLLIN | POLLHUP | POLLERR))
        return rx_read(m, control, context);
    return 0;
}
