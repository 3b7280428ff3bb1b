/* Requests of file systems (virtio 1.2, 5.11.6): the one that a session begins with. */
#pragma once

#include "kind.h"

void fs_fill(const struct device *device, struct request *request);
enum outcome fs_judge(const struct request *request, uint32_t length);
