#include "virtio/irq.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "virtio/fault_internal.h"

#define INTERRUPT_STATUS 0x60
#define STATUS 0x70
#define CONFIG_SPACE 0x100
#define PAGE_BYTES 4096
#define USED 1u
#define CONFIG 2u
#define NEEDS_RESET 64u
#define NAME_BYTES 32

struct pv_virtio_irq {
	char *page;
	_Atomic uint32_t *interrupt_status;
	_Atomic uint32_t *status;
	_Atomic uint32_t standing; /* bits of InterruptStatus that no acknowledgement clears */
	int irq_fd;
	int broken_fd;
	char name[NAME_BYTES];
	atomic_bool broken;
	pthread_mutex_t why_lock; /* of the two below; held for a copy */
	bool has_why;
	char why[PV_VIRTIO_WHY_BYTES];
	_Atomic uint64_t count;
	_Atomic uint32_t doubled; /* interrupts to be raised again */
	atomic_bool lost;         /* one was, and none has been raised instead */
	struct pv_faults faults;
};

int pv_virtio_irq_new(void *page, int irq_fd, int broken_fd, struct pv_virtio_irq **out)
{
	struct pv_virtio_irq *irq;

	if (!page || (uintptr_t)page % PAGE_BYTES)
		return -EINVAL;
	irq = calloc(1, sizeof(*irq));
	if (!irq)
		return -ENOMEM;
	irq->page = page;
	irq->interrupt_status = (_Atomic uint32_t *)((char *)page + INTERRUPT_STATUS);
	irq->status = (_Atomic uint32_t *)((char *)page + STATUS);
	irq->irq_fd = irq_fd;
	irq->broken_fd = broken_fd;
	pthread_mutex_init(&irq->why_lock, NULL);
	pv_faults_init(&irq->faults);
	*out = irq;
	return 0;
}

/* A character of UTF-8 that does not fit is left out as a whole. */
static void copy_text(char *to, size_t size, const char *text)
{
	size_t length = strnlen(text, size);

	if (length == size) {
		length--;
		while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80)
			length--;
	}
	memcpy(to, text, length);
	to[length] = '\0';
}

void pv_virtio_irq_free(struct pv_virtio_irq *irq)
{
	if (!irq)
		return;
	pv_faults_destroy(&irq->faults);
	pthread_mutex_destroy(&irq->why_lock);
	free(irq);
}

void pv_virtio_irq_set_name(struct pv_virtio_irq *irq, const char *name)
{
	copy_text(irq->name, sizeof(irq->name), name);
}

const char *pv_virtio_irq_name(const struct pv_virtio_irq *irq)
{
	return irq->name;
}

static void raise_line(struct pv_virtio_irq *irq, uint32_t bit)
{
	atomic_fetch_or(irq->interrupt_status, bit);
	atomic_fetch_add_explicit(&irq->count, 1, memory_order_relaxed);
	(void)eventfd_write(irq->irq_fd, 1);
}

static __attribute__((cold, noinline)) void raise_faultily(struct pv_virtio_irq *irq)
{
	const struct pv_fault_subject subject = {.op = PV_FAULT_INTERRUPT};
	struct pv_fault_verdict verdict = pv_faults_judge(&irq->faults, &subject);

	if (verdict.dropped_by) {
		/* The bit is there, as with a line that has lost an edge. */
		atomic_store(&irq->lost, true);
		atomic_fetch_or(irq->interrupt_status, USED);
		if (!pv_faults_has(&irq->faults, verdict.dropped_by))
			pv_virtio_irq_make_up(irq); /* the rule went meanwhile */
		return;
	}
	raise_line(irq, USED);
	if (verdict.doubled) {
		atomic_fetch_add(&irq->doubled, 1);
		pv_virtio_irq_news(irq);
	}
}

void pv_virtio_irq_used(struct pv_virtio_irq *irq)
{
	if (pv_faults_armed(&irq->faults) & PV_FAULT_INTERRUPT)
		raise_faultily(irq);
	else
		raise_line(irq, USED);
}

struct pv_faults *pv_virtio_irq_faults(struct pv_virtio_irq *irq)
{
	return &irq->faults;
}

void pv_virtio_irq_make_up(struct pv_virtio_irq *irq)
{
	if (atomic_exchange(&irq->lost, false))
		raise_line(irq, USED);
}

void pv_virtio_irq_echo(struct pv_virtio_irq *irq)
{
	for (uint32_t left = atomic_exchange(&irq->doubled, 0); left > 0; left--)
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
		pthread_mutex_lock(&irq->why_lock);
		copy_text(irq->why, sizeof(irq->why), why);
		irq->has_why = true;
		pthread_mutex_unlock(&irq->why_lock);
	}
	pv_faults_set_broken(&irq->faults, true);
	atomic_fetch_or(irq->status, NEEDS_RESET);
	raise_line(irq, CONFIG);
	(void)eventfd_write(irq->broken_fd, 1);
}

int pv_virtio_irq_is_broken(const struct pv_virtio_irq *irq)
{
	return atomic_load(&irq->broken);
}

void pv_virtio_irq_news(struct pv_virtio_irq *irq)
{
	(void)eventfd_write(irq->broken_fd, 1);
}

void pv_virtio_irq_set_config(struct pv_virtio_irq *irq, uint32_t offset, const void *data,
                              uint32_t length)
{
	_Atomic uint8_t *at = (_Atomic uint8_t *)(irq->page + CONFIG_SPACE + offset);

	for (uint32_t i = 0; i < length; i++)
		atomic_store_explicit(&at[i], ((const uint8_t *)data)[i], memory_order_relaxed);
}

void pv_virtio_irq_clear_config(struct pv_virtio_irq *irq, uint32_t offset, uint8_t bits)
{
	atomic_fetch_and((_Atomic uint8_t *)(irq->page + CONFIG_SPACE + offset), (uint8_t)~bits);
}

int pv_virtio_irq_lend(struct pv_virtio_irq *irq)
{
	atomic_store(&irq->standing, USED);
	atomic_fetch_or(irq->interrupt_status, USED);
	return irq->irq_fd;
}

uint64_t pv_virtio_irq_count(const struct pv_virtio_irq *irq)
{
	return atomic_load_explicit(&irq->count, memory_order_relaxed);
}

void pv_virtio_irq_ack(struct pv_virtio_irq *irq, uint32_t bits)
{
	atomic_fetch_and(irq->interrupt_status, ~(bits & ~atomic_load(&irq->standing)));
}

void pv_virtio_irq_add_status(struct pv_virtio_irq *irq, uint32_t bits)
{
	atomic_fetch_or(irq->status, bits);
}

void pv_virtio_irq_reset(struct pv_virtio_irq *irq)
{
	pv_faults_set_broken(&irq->faults, false);
	atomic_store(&irq->doubled, 0);
	atomic_store(&irq->lost, false);
	atomic_store(&irq->standing, 0);
	atomic_store(irq->interrupt_status, 0);
	atomic_store(irq->status, 0);
	atomic_store(&irq->broken, false);
}

int pv_virtio_irq_take_reason(struct pv_virtio_irq *irq, char why[PV_VIRTIO_WHY_BYTES])
{
	int taken;

	pthread_mutex_lock(&irq->why_lock);
	taken = irq->has_why;
	irq->has_why = false;
	memcpy(why, irq->why, PV_VIRTIO_WHY_BYTES);
	pthread_mutex_unlock(&irq->why_lock);
	return taken;
}
