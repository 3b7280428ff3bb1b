#include "console/console.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "console/state_internal.h"
#include "thread_internal.h"

#define NS_PER_MS UINT64_C(1000000)

void pv_console_set_device(struct pv_console *c, pv_console_notify notify, void *device)
{
	pthread_mutex_lock(&c->device_lock);
	c->notify = notify;
	c->device = device;
	pthread_mutex_unlock(&c->device_lock);
}

bool pv_console_put(struct pv_console *c, uint8_t byte)
{
	bool fits = pv_ring_put(c->output, byte) == 0;

	if (atomic_load_explicit(&c->first_output_ns, memory_order_relaxed) == 0)
		atomic_store(&c->first_output_ns, pv_console_now());
	if (!fits)
		atomic_fetch_add(&c->bytes_dropped, 1);
	if (pv_ring_used(c->output) >= atomic_load(&c->wake_at) &&
	    atomic_exchange(&c->wake_at, PV_CONSOLE_NEVER) != PV_CONSOLE_NEVER)
		pv_console_signal(c->event_fd);
	return fits;
}

bool pv_console_ready(struct pv_console *c)
{
	if (pv_console_half_free(c))
		return true;
	atomic_store(&c->want_room, true);
	return pv_console_half_free(c);
}

int pv_console_peek(const struct pv_console *c, uint32_t offset)
{
	return pv_ring_peek(c->input, offset);
}

void pv_console_take(struct pv_console *c)
{
	pv_ring_drop(c->input, 1);
	if (atomic_load(&c->input_full) && pv_ring_room(c->input) >= PV_CONSOLE_HALF &&
	    atomic_exchange(&c->input_full, false))
		pv_console_signal(c->event_fd);
}

void pv_console_arm(struct pv_console *c, uint64_t nanoseconds)
{
	/* A thread that sleeps until an earlier deadline will see the new one by itself. */
	if (atomic_exchange(&c->deadline, pv_console_now() + nanoseconds) == 0)
		pv_console_signal(c->event_fd);
}

int pv_console_new(struct pv_console **out)
{
	struct pv_console *c = calloc(1, sizeof(*c));
	pthread_condattr_t monotonic;
	int error;

	*out = NULL;
	if (!c)
		return -ENOMEM;
	c->in.fd = c->out.fd = c->listen_fd = c->quit_fd = -1;
	atomic_init(&c->wake_at, PV_CONSOLE_NEVER);
	pthread_mutex_init(&c->device_lock, NULL);
	pthread_mutex_init(&c->flush_lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&c->settled, &monotonic);
	pthread_condattr_destroy(&monotonic);

	c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	error = c->event_fd < 0 ? -errno : pv_ring_new(PV_CONSOLE_RING, &c->output);
	if (!error)
		error = pv_ring_new(PV_CONSOLE_RING, &c->input);
	if (error) {
		pv_console_free(c);
		return error;
	}
	*out = c;
	return 0;
}

void pv_console_free(struct pv_console *c)
{
	if (!c)
		return;
	pv_console_stop(c);
	if (c->event_fd >= 0)
		close(c->event_fd);
	pv_ring_free(c->output);
	pv_ring_free(c->input);
	pthread_cond_destroy(&c->settled);
	pthread_mutex_destroy(&c->flush_lock);
	pthread_mutex_destroy(&c->device_lock);
	free(c);
}

static int duplicate(int fd, int *copy)
{
	*copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return fd >= 0 && *copy < 0 ? -errno : 0;
}

static int open_all(struct pv_console *c, const struct pv_console_config *config)
{
	int error = pv_stream_open(&c->in, config->in_fd, PV_STREAM_READ);

	if (!error)
		error = pv_stream_open(&c->out, config->out_fd, PV_STREAM_WRITE);
	if (!error)
		c->out.ringbuf = config->ringbuf;
	if (!error)
		error = duplicate(config->listen_fd, &c->listen_fd);
	if (!error)
		error = duplicate(config->quit_fd, &c->quit_fd);
	return error;
}

static void close_all(struct pv_console *c)
{
	pv_stream_close(&c->in);
	pv_stream_close(&c->out);
	if (c->listen_fd >= 0)
		close(c->listen_fd);
	if (c->quit_fd >= 0)
		close(c->quit_fd);
	c->listen_fd = c->quit_fd = -1;
}

static int create_thread(struct pv_console *c)
{
	return pv_thread_start(&c->thread, pv_console_thread, c);
}

int pv_console_start(struct pv_console *c, const struct pv_console_config *config)
{
	int error;

	if (c->running)
		return -EBUSY;
	c->flags = config->flags;
	c->blocked = c->away = c->escape_held = false;
	c->notice = NULL;
	c->gather_ns = c->gather_until = c->pause_until = 0;
	error = open_all(c, config);
	if (!error) {
		c->may_block = c->in.guarded || c->out.guarded;
		/* What the C library cancels a thread by, which a sandbox lets nobody load later. */
		if (c->may_block)
			(void)dlopen("libgcc_s.so.1", RTLD_NOW);
		atomic_store(&c->stopping, false);
		atomic_store(&c->taken, c->out.fd >= 0);
		error = create_thread(c);
	}
	if (error) {
		atomic_store(&c->taken, false);
		close_all(c);
	}
	c->running = !error;
	return error;
}

void pv_console_stop(struct pv_console *c)
{
	if (!c->running)
		return;
	atomic_store(&c->stopping, true);
	pv_console_signal(c->event_fd);
	/* Only descriptors given to pv_console_start can be guarded: clients are sockets. */
	if (c->may_block)
		pthread_cancel(c->thread);
	pthread_join(c->thread, NULL);
	atomic_store(&c->wake_at, PV_CONSOLE_NEVER);
	atomic_store(&c->taken, false);
	close_all(c);
	c->running = false;
}

static bool wait_settled(struct pv_console *c, const struct timespec *until)
{
	int error = 0;

	pthread_mutex_lock(&c->flush_lock);
	while (!pv_console_settled(c) && error == 0)
		error = pthread_cond_timedwait(&c->settled, &c->flush_lock, until);
	pthread_mutex_unlock(&c->flush_lock);
	return pv_console_settled(c);
}

int pv_console_flush(struct pv_console *c, uint32_t timeout_ms)
{
	uint64_t at = pv_console_now() + timeout_ms * NS_PER_MS;
	struct timespec until = {
		.tv_sec = (time_t)(at / PV_NS_PER_S),
		.tv_nsec = (long)(at % PV_NS_PER_S),
	};
	bool done;

	atomic_fetch_add(&c->flushing, 1);
	pv_console_signal(c->event_fd);
	done = wait_settled(c, &until);
	atomic_fetch_sub(&c->flushing, 1);
	return done ? 0 : -ETIMEDOUT;
}

uint32_t pv_console_save_output(const struct pv_console *c, uint8_t *data)
{
	return pv_ring_copy(c->output, data, PV_CONSOLE_RING);
}

uint32_t pv_console_save_input(const struct pv_console *c, uint8_t *data)
{
	return pv_ring_copy(c->input, data, PV_CONSOLE_RING);
}

int pv_console_restore(struct pv_console *c, const uint8_t *output, uint32_t output_bytes,
                       const uint8_t *input, uint32_t input_bytes)
{
	if (c->running)
		return -EBUSY;
	if (output_bytes > pv_ring_room(c->output) || input_bytes > pv_ring_room(c->input))
		return -EINVAL;
	for (uint32_t i = 0; i < output_bytes; i++)
		(void)pv_ring_put(c->output, output[i]);
	for (uint32_t i = 0; i < input_bytes; i++)
		(void)pv_ring_put(c->input, input[i]);
	return 0;
}

bool pv_console_is_taken(const struct pv_console *c)
{
	return atomic_load(&c->taken);
}

void pv_console_stats(const struct pv_console *c, struct pv_console_stats *stats)
{
	stats->bytes_out = atomic_load(&c->bytes_out);
	stats->bytes_in = atomic_load(&c->bytes_in);
	stats->bytes_dropped = atomic_load(&c->bytes_dropped);
	stats->bytes_discarded = atomic_load(&c->bytes_discarded);
	stats->out_errno = atomic_load(&c->out_errno);
}

uint64_t pv_console_first_output_ns(const struct pv_console *c)
{
	return atomic_load(&c->first_output_ns);
}
