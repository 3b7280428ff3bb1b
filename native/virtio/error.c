/* Why a virtqueue is broken. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "virtio/virtqueue_internal.h"

int pv_virtqueue_fail(struct pv_virtqueue *queue, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(queue->reason, sizeof(queue->reason), format, arguments);
	va_end(arguments);
	atomic_store(&queue->error, queue->reason);
	return -EPROTO;
}

const char *pv_virtqueue_error(const struct pv_virtqueue *queue)
{
	return atomic_load(&queue->error);
}
