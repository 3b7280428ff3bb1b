#include "virtio_irq.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#define INTERRUPT_STATUS 0x60
#define STATUS 0x70
#define USED 1u
#define CONFIG 2u
#define NEEDS_RESET 64u
#define WHY_BYTES 160

struct pv_virtio_irq {
	_Atomic uint32_t *interrupt_status;
	_Atomic uint32_t *status;
	int irq_fd;
	int broken_fd;
	atomic_bool broken;
	_Atomic(const char *) reason; /* NULL or `why` */
	char why[WHY_BYTES];          /* written by who set `broken`, before `reason` */
	_Atomic uint64_t count;
};

int pv_virtio_irq_new(void *page, int irq_fd, int broken_fd, struct pv_virtio_irq **out)
{
	struct pv_virtio_irq *irq;

	if (!page || (uintptr_t)page % 4096)
		return -EINVAL;
	irq = calloc(1, sizeof(*irq));
	if (!irq)
		return -ENOMEM;
	irq->interrupt_status = (_Atomic uint32_t *)((char *)page + INTERRUPT_STATUS);
	irq->status = (_Atomic uint32_t *)((char *)page + STATUS);
	irq->irq_fd = irq_fd;
	irq->broken_fd = broken_fd;
	*out = irq;
	return 0;
}

void pv_virtio_irq_free(struct pv_virtio_irq *irq)
{
	free(irq);
}

static void raise_line(struct pv_virtio_irq *irq, uint32_t bit)
{
	atomic_fetch_or(irq->interrupt_status, bit);
	atomic_fetch_add_explicit(&irq->count, 1, memory_order_relaxed);
	(void)eventfd_write(irq->irq_fd, 1);
}

void pv_virtio_irq_used(struct pv_virtio_irq *irq)
{
	raise_line(irq, USED);
}

void pv_virtio_irq_config(struct pv_virtio_irq *irq)
{
	raise_line(irq, CONFIG);
}

void pv_virtio_irq_broken(struct pv_virtio_irq *irq, const char *why)
{
	if (atomic_exchange(&irq->broken, true))
		return;
	if (why) {
		snprintf(irq->why, sizeof(irq->why), "%s", why);
		atomic_store(&irq->reason, irq->why);
	}
	atomic_fetch_or(irq->status, NEEDS_RESET);
	raise_line(irq, CONFIG);
	(void)eventfd_write(irq->broken_fd, 1);
}

void pv_virtio_irq_news(struct pv_virtio_irq *irq)
{
	(void)eventfd_write(irq->broken_fd, 1);
}

int pv_virtio_irq_is_broken(const struct pv_virtio_irq *irq)
{
	return atomic_load(&irq->broken);
}

uint64_t pv_virtio_irq_count(const struct pv_virtio_irq *irq)
{
	return atomic_load_explicit(&irq->count, memory_order_relaxed);
}

void pv_virtio_irq_ack(struct pv_virtio_irq *irq, uint32_t bits)
{
	atomic_fetch_and(irq->interrupt_status, ~bits);
}

void pv_virtio_irq_add_status(struct pv_virtio_irq *irq, uint32_t bits)
{
	atomic_fetch_or(irq->status, bits);
}

void pv_virtio_irq_reset(struct pv_virtio_irq *irq)
{
	atomic_store(irq->interrupt_status, 0);
	atomic_store(irq->status, 0);
	atomic_store(&irq->broken, false);
}

const char *pv_virtio_irq_take_reason(struct pv_virtio_irq *irq)
{
	return atomic_exchange(&irq->reason, NULL);
}
