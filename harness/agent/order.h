/* What a command is to be, as SPAWN and the MOREs before it say. */
#ifndef PYVIRT_AGENT_ORDER_H
#define PYVIRT_AGENT_ORDER_H

#include <stdbool.h>
#include <stdint.h>

/* `env` is set on top of the agent's own; all strings are in `text`. */
struct order {
    char *text;
    uint32_t length;
    bool too_long; /* the text was dropped */
    bool input, builtin;
    const char *cwd;
    char **argv, **env; /* each ends with NULL; `argv` is allocated for both */
};

/* Takes the payload of a frame. */
void order_add(struct order *o, const uint8_t *bytes, uint32_t length);

/* Reads what has been added: -EPROTO, -E2BIG, -ENOMEM, or 0 and all the fields are set. */
int order_parse(struct order *o);

/* Frees what it holds and makes it ready for another. */
void order_clear(struct order *o);

#endif
