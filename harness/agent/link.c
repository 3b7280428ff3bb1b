#define _GNU_SOURCE
#include "link.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* What a failed read or write means: 1 for a host that has gone. */
static int link_error(void)
{
    if (errno == EAGAIN || errno == EINTR)
        return 0;
    return errno == EPIPE || errno == ECONNRESET ? 1 : -errno;
}

int link_read(struct link *l)
{
    ssize_t n;

    if (l->rx_at > 0) {
        l->rx_len -= l->rx_at;
        memmove(l->rx, l->rx + l->rx_at, l->rx_len);
        l->rx_at = 0;
    }
    if (l->rx_len == LINK_RX_SIZE)
        return 0; /* whole frames that still wait for room to be answered */
    n = read(l->fd, l->rx + l->rx_len, LINK_RX_SIZE - l->rx_len);
    if (n < 0)
        return link_error();
    l->rx_len += (uint32_t)n;
    return n == 0;
}

bool link_next(struct link *l, struct frame *f)
{
    const uint8_t *p = l->rx + l->rx_at;
    uint32_t have = l->rx_len - l->rx_at;

    if (have < FRAME_HEADER)
        return false;
    f->id = get32(p);
    f->kind = (uint16_t)(p[4] | p[5] << 8);
    f->length = (uint16_t)(p[6] | p[7] << 8);
    f->payload = p + FRAME_HEADER;
    if (have < FRAME_HEADER + (uint32_t)f->length)
        return false;
    l->rx_at += FRAME_HEADER + (uint32_t)f->length;
    return true;
}

void link_forget(struct link *l)
{
    l->tx_at = l->tx_len = 0;
}

int link_flush(struct link *l)
{
    while (l->tx_at < l->tx_len) {
        ssize_t n = write(l->fd, l->tx + l->tx_at, l->tx_len - l->tx_at);

        if (n < 0)
            return link_error();
        l->tx_at += (uint32_t)n;
    }
    link_forget(l);
    return 0;
}

uint32_t link_room(const struct link *l)
{
    return LINK_TX_SIZE - l->tx_len;
}

uint8_t *link_space(struct link *l)
{
    return l->tx + l->tx_len + FRAME_HEADER;
}

void link_commit(struct link *l, uint32_t id, enum kind kind, uint32_t length)
{
    uint8_t *p = l->tx + l->tx_len;

    put32(p, id);
    put32(p + 4, (uint32_t)kind | length << 16);
    l->tx_len += FRAME_HEADER + length;
}

void link_send(struct link *l, uint32_t id, enum kind kind, const uint32_t *words, uint32_t count,
               const void *bytes, uint32_t length)
{
    uint8_t *p = link_space(l);

    for (uint32_t i = 0; i < count; i++)
        put32(p + 4 * i, words[i]);
    if (length > 0)
        memcpy(p + 4 * count, bytes, length);
    link_commit(l, id, kind, 4 * count + length);
}
