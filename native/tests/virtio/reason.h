/* What a device said of why it broke. */
#ifndef PV_TESTS_REASON_H
#define PV_TESTS_REASON_H

#include <string.h>

#include "tests/check.h"
#include "virtio/irq.h"

/* That it says `why`, and once only; NULL: nothing. */
static inline void check_reason(struct pv_virtio_irq *irq, const char *why)
{
	char said[PV_VIRTIO_WHY_BYTES];

	CHECK_EQ(pv_virtio_irq_take_reason(irq, said), why != NULL);
	if (!why)
		return;
	if (strcmp(said, why) != 0)
		fprintf(stderr, "broken: %s\n", said);
	CHECK_EQ(strcmp(said, why), 0);
	CHECK_EQ(pv_virtio_irq_take_reason(irq, said), 0);
}

#endif
