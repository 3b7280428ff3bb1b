/* How a virtio-mmio device speaks up: the interrupt and status words of its register page, and the
 * eventfd of its interrupt line.
 *
 * The transport makes one for each device; any thread may call what is below. The guest may read
 * the page at any moment without an exit, so its words change by single atomic operations only.
 * Source: virtio 1.2, 4.2.2 (registers) and 2.1.2 (DEVICE_NEEDS_RESET). */
#ifndef PV_VIRTIO_IRQ_H
#define PV_VIRTIO_IRQ_H

#include <stdint.h>

#define PV_VIRTIO_WHY_BYTES 512 /* of the line that says why a device broke, with its end */

struct pv_faults;
struct pv_virtio_irq;

/* `page` is the register page, 4 KiB, aligned; `irq_fd` an eventfd, one edge for each write;
 * `broken_fd` an eventfd that pv_virtio_irq_broken writes. All are borrowed. -ENOMEM, -EINVAL. */
int pv_virtio_irq_new(void *page, int irq_fd, int broken_fd, struct pv_virtio_irq **out);
void pv_virtio_irq_free(struct pv_virtio_irq *irq);
/* How messages call the device, cut to 31 bytes; "" if nobody has said. Not while it is active. */
void pv_virtio_irq_set_name(struct pv_virtio_irq *irq, const char *name);
/* As long as it lives. */
const char *pv_virtio_irq_name(const struct pv_virtio_irq *irq);

/* Used buffers: set bit 0 of InterruptStatus, raise the line (unless a fault forbids it). */
void pv_virtio_irq_used(struct pv_virtio_irq *irq);
/* A changed configuration: set bit 1, raise the line. */
void pv_virtio_irq_config(struct pv_virtio_irq *irq);
/* The device cannot go on: set DEVICE_NEEDS_RESET, raise a configuration interrupt, and tell the
 * transport. Only the first call after pv_virtio_irq_reset has an effect. `why` is a line for
 * the log in UTF-8, copied as far as there is room, or NULL. */
void pv_virtio_irq_broken(struct pv_virtio_irq *irq, const char *why);
/* 1 from pv_virtio_irq_broken to pv_virtio_irq_reset, otherwise 0. */
int pv_virtio_irq_is_broken(const struct pv_virtio_irq *irq);

/* The device has something to tell the monitor, whose thread will ask: writes `broken_fd`. */
void pv_virtio_irq_news(struct pv_virtio_irq *irq);
/* Change bytes of the configuration space as the driver itself asked for: no interrupt, no new
 * generation. They are within the page. */
void pv_virtio_irq_set_config(struct pv_virtio_irq *irq, uint32_t offset, const void *data,
                              uint32_t length);
/* Clear bits of a byte there, whatever else of it changes meanwhile. */
void pv_virtio_irq_clear_config(struct pv_virtio_irq *irq, uint32_t offset, uint8_t bits);
/* The eventfd of the line, for the kernel to raise it by. It cannot set bit 0 of InterruptStatus,
 * so the bit stands from now on until the reset, whatever is acknowledged. Drivers look at their
 * rings when they find it set, also for another device on the line. */
int pv_virtio_irq_lend(struct pv_virtio_irq *irq);

/* Interrupts raised here since the beginning; each was a write to the line. */
uint64_t pv_virtio_irq_count(const struct pv_virtio_irq *irq);

/* The rules of fault.h for this device, which live as long as this. */
struct pv_faults *pv_virtio_irq_faults(struct pv_virtio_irq *irq);

/* The transport's side. */
/* Clear bits of InterruptStatus. */
void pv_virtio_irq_ack(struct pv_virtio_irq *irq, uint32_t bits);
/* Set bits of Status. */
void pv_virtio_irq_add_status(struct pv_virtio_irq *irq, uint32_t bits);
/* Raise the line once if a fault has lost an interrupt: a driver with event indexes waits for that
 * one, and is sent no other before. */
void pv_virtio_irq_make_up(struct pv_virtio_irq *irq);
/* Raise again the interrupts that a fault doubles; after pv_virtio_irq_news. */
void pv_virtio_irq_echo(struct pv_virtio_irq *irq);
/* Status and InterruptStatus become 0 and the device whole again; none of its threads runs. */
void pv_virtio_irq_reset(struct pv_virtio_irq *irq);
/* 1: copies to `why` a line that says why the device broke, once after each break; otherwise 0.
 * Breaks and resets may happen meanwhile. */
int pv_virtio_irq_take_reason(struct pv_virtio_irq *irq, char why[512]);

#endif
