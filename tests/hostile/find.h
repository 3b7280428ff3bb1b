/* Which devices there are, and what else the command line, `words`, says. */
#pragma once

#include "device.h"
#include "ports.h"

/* Those that the command line names (virtio_mmio.device=SIZE@BASE:IRQ), else those in the windows
 * where monitors are known to have them; their number. */
unsigned find_devices(const char *words, struct device *devices);

/* The number that the command line gives a word (`name=`), or `otherwise`. */
unsigned find_number(const char *words, const char *name, unsigned otherwise);

/* What the command line gives a word as ports (`name=FIRST+COUNT`); none where it has none. */
struct ports find_ports(const char *words, const char *name);

/* Whether the command line has a word, and whether a list of it (`name=WORD,WORD`) has one. */
bool find_word(const char *words, const char *name);
bool find_in_list(const char *words, const char *name, const char *word);
