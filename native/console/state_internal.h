/* What the console's life (console.c) and its thread (thread.c) share; state.c has the code. */
#ifndef PV_CONSOLE_STATE_INTERNAL_H
#define PV_CONSOLE_STATE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "console/console_internal.h"
#include "console/ring_internal.h"
#include "stream_internal.h"

#define PV_CONSOLE_HALF (PV_CONSOLE_RING / 2)
#define PV_CONSOLE_NEVER UINT32_MAX
#define PV_NS_PER_S UINT64_C(1000000000)

struct pv_console {
	struct pv_ring *output; /* device to thread */
	struct pv_ring *input;  /* thread to device */
	int event_fd;           /* wakes the thread */

	/* How many bytes of output wake the thread; PV_CONSOLE_NEVER while it is awake. Stored
	 * before the thread looks at the ring a last time, loaded after a byte was put: one of the
	 * two sees the other. The flags below work the same way. */
	_Atomic uint32_t wake_at;
	atomic_bool want_room;  /* the device waits for PV_CONSOLE_ROOM */
	atomic_bool input_full; /* the thread waits for room in `input` */
	atomic_bool stopping;
	atomic_bool taken; /* there is somebody to write to */
	_Atomic uint32_t flushing;
	_Atomic uint64_t deadline; /* of PV_CONSOLE_TIMER; 0: none */

	_Atomic uint64_t first_output_ns;
	_Atomic uint64_t bytes_out;
	_Atomic uint64_t bytes_in;
	_Atomic uint64_t bytes_dropped;
	_Atomic uint64_t bytes_discarded;
	_Atomic uint32_t out_errno;

	pthread_mutex_t device_lock; /* held while `notify` runs */
	pv_console_notify notify;
	void *device;

	pthread_mutex_t flush_lock;
	pthread_cond_t settled;

	/* What follows is the thread's alone while it runs. */
	bool running;
	bool may_block; /* `in` or `out` is guarded */
	pthread_t thread;
	struct pv_stream in;
	struct pv_stream out;
	int listen_fd;
	int quit_fd;
	uint32_t flags;
	bool blocked;          /* output said EAGAIN */
	bool away;             /* nobody has the pty open */
	bool escape_held;      /* a Ctrl-A came last */
	const char *notice;    /* help still to be written, or NULL */
	uint64_t now;          /* CLOCK_MONOTONIC, when the thread last woke */
	uint64_t gather_ns;    /* the last time to gather output in */
	uint64_t gather_until; /* let output gather until then unless there is much of it */
	uint64_t pause_until;  /* take no input and no client before */
	uint64_t look_at;      /* when to see whether the pty was opened */
};

/* The thread; `argument` is the console. Returns NULL once `stopping` is set and it is woken. */
void *pv_console_thread(void *argument);

uint64_t pv_console_now(void);

/* Add 1 to an eventfd, which wakes whoever polls it. */
void pv_console_signal(int event_fd);

/* Whether at least half of the output ring is free. */
bool pv_console_half_free(const struct pv_console *c);

/* Whether there is nothing to write, or nobody to write it to. */
bool pv_console_settled(const struct pv_console *c);

#endif
