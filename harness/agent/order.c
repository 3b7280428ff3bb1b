#include "order.h"
#include "link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FIXED = 8 }; /* flags u32 and count u32, before the strings */

void order_add(struct order *o, const uint8_t *bytes, uint32_t length)
{
    char *text = NULL;

    if (!o->too_long && o->length + length <= SPAWN_TEXT_MAX)
        text = realloc(o->text, o->length + length + 1);
    o->too_long = !text;
    if (!text)
        return;
    memcpy(text + o->length, bytes, length);
    o->text = text;
    o->length += length;
}

static uint32_t count_strings(const char *text, uint32_t length)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < length; i++)
        count += text[i] == '\0';
    return count;
}

int order_parse(struct order *o)
{
    uint32_t total, argc, flags;
    char *at = o->text + FIXED;

    if (o->too_long)
        return -E2BIG;
    if (o->length <= FIXED || o->text[o->length - 1] != '\0')
        return -EPROTO;
    flags = get32((const uint8_t *)o->text);
    argc = get32((const uint8_t *)o->text + 4);
    total = count_strings(at, o->length - FIXED);
    if (flags & ~(uint32_t)(SPAWN_INPUT | SPAWN_BUILTIN) || argc == 0 || argc >= total)
        return -EPROTO;
    /* The folder has no place in it, and each of the two lists ends with NULL. */
    o->argv = calloc(total + 1, sizeof(*o->argv));
    if (!o->argv)
        return -ENOMEM;
    o->input = flags & SPAWN_INPUT;
    o->builtin = flags & SPAWN_BUILTIN;
    o->cwd = at;
    o->env = o->argv + argc + 1;
    for (uint32_t i = 1; i < total; i++) {
        at += strlen(at) + 1;
        o->argv[i <= argc ? i - 1 : i] = at;
    }
    return 0;
}

void order_clear(struct order *o)
{
    free(o->text);
    free(o->argv);
    *o = (struct order){ .text = NULL };
}
