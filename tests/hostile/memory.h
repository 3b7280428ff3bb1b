/* What a compiler takes for granted, and no library is here to give. */
#pragma once

#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *at, int value, size_t bytes);
int memcmp(const void *one, const void *other, size_t bytes);
