/* Frames over a descriptor that does not block: one buffer for each direction. */
#ifndef PYVIRT_AGENT_LINK_H
#define PYVIRT_AGENT_LINK_H

#include "protocol.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    LINK_RX_SIZE = FRAME_HEADER + FRAME_PAYLOAD_MAX,
    LINK_TX_SIZE = 4 * (FRAME_HEADER + FRAME_DATA_MAX),
    LINK_ANSWER = 256, /* more than what any frame from the host makes the agent send at once */
};

struct frame {
    uint32_t id;
    uint16_t kind, length;
    const uint8_t *payload; /* in the link's buffer, until the next read */
};

struct link {
    int fd;
    uint32_t rx_at, rx_len, tx_at, tx_len;
    uint8_t rx[LINK_RX_SIZE], tx[LINK_TX_SIZE];
};

uint32_t get32(const uint8_t *p);
void put32(uint8_t *p, uint32_t v);

/* Reads what has come: 1 when the host has gone, else 0 or -errno. */
int link_read(struct link *l);

/* Takes the next frame off what has been read; false when there is no whole one. */
bool link_next(struct link *l, struct frame *f);

/* Writes what is due, as far as it goes: 1 when the host has gone, else 0 or -errno. */
int link_flush(struct link *l);

/* Forgets what is still to be written. */
void link_forget(struct link *l);

/* How many bytes, headers included, may be sent now. */
uint32_t link_room(const struct link *l);

/* Queues a frame of `count` u32 and then `length` bytes, for which there is room. */
void link_send(struct link *l, uint32_t id, enum kind kind, const uint32_t *words, uint32_t count,
               const void *bytes, uint32_t length);

/* Where the payload of the next frame goes, `link_room() - FRAME_HEADER` bytes at most. */
uint8_t *link_space(struct link *l);

/* Queues the frame whose `length` bytes of payload are in `link_space()`. */
void link_commit(struct link *l, uint32_t id, enum kind kind, uint32_t length);

#endif
