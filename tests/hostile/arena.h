/* The memory that devices are told of: pieces with guards around them, of which a device may write
 * to some. What else it writes to is found. */
#pragma once

#include <stdint.h>

enum use { DEVICE_READS, DEVICE_WRITES };

/* Forget all pieces. */
void arena_clear(void);

/* A piece of zeros on a multiple of 16, there until arena_clear. */
void *arena_take(uint32_t bytes, enum use use);

/* Remember what the pieces hold that devices only read. */
void arena_seal(void);

/* From here on a device is to write to nothing. */
void arena_freeze(void);

/* What a device has done since arena_seal that it must not have done; NULL: nothing. */
const char *arena_damage(void);
