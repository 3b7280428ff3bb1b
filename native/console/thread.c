/* The console's own thread: everything that touches the host's descriptors. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "console/escape_internal.h"
#include "console/state_internal.h"
#include "sandbox/filter.h"
#include "thread_internal.h"

#define BACKLOG (PV_CONSOLE_RING / 4) /* kept for a client that comes later */
#define FOREVER UINT64_MAX
#define NS_PER_MS UINT64_C(1000000)
#define GATHER_MIN_NS NS_PER_MS      /* after a write, gather what follows for so long; */
#define GATHER_MAX_NS (16 * NS_PER_MS) /* twice as long each time while output goes on */
#define RETRY_NS (250 * NS_PER_MS) /* look again at what cannot be used now */

/* Output. */

static void notify(struct pv_console *c, enum pv_console_event event)
{
	pthread_mutex_lock(&c->device_lock);
	if (c->notify)
		c->notify(c->device, event);
	pthread_mutex_unlock(&c->device_lock);
}

static bool can_write(const struct pv_console *c)
{
	return c->out.fd >= 0 && !c->away;
}

static void drop_output(struct pv_console *c, uint32_t count)
{
	pv_ring_drop(c->output, count);
	if (atomic_load(&c->want_room) && pv_console_half_free(c) &&
	    atomic_exchange(&c->want_room, false))
		notify(c, PV_CONSOLE_ROOM);
}

static void close_output(struct pv_console *c, int error)
{
	pv_stream_close(&c->out);
	c->blocked = false;
	c->notice = NULL;
	atomic_store(&c->taken, false);
	if (c->listen_fd < 0)
		atomic_store(&c->out_errno, (uint32_t)error);
}

/* Write some of `data`; return how much. */
static uint32_t write_some(struct pv_console *c, const uint8_t *data, uint32_t count)
{
	int64_t written = pv_stream_write(&c->out, data, count);

	if (written >= 0)
		return (uint32_t)written;
	if (written == -EAGAIN)
		c->blocked = true;
	else
		close_output(c, (int)-written);
	return 0;
}

static void write_notice(struct pv_console *c)
{
	uint32_t length = (uint32_t)strlen(c->notice);
	uint32_t written = write_some(c, (const uint8_t *)c->notice, length);

	if (c->notice)
		c->notice = written < length ? c->notice + written : NULL;
}

/* The number of bytes held from which on there is something to do with them. */
static uint32_t threshold(const struct pv_console *c)
{
	if (can_write(c) && c->blocked)
		return PV_CONSOLE_NEVER;
	if (!can_write(c) || (c->now < c->gather_until && !atomic_load(&c->flushing)))
		return PV_CONSOLE_HALF + 1;
	return 1;
}

/* Begin to gather. A write may cost its reader milliseconds, so a steady flow is cut into few. */
static void gather(struct pv_console *c)
{
	uint64_t now = pv_console_now();
	bool goes_on = now < c->gather_until + c->gather_ns;
	uint64_t longer = c->gather_ns * 2;

	if (!goes_on)
		c->gather_ns = GATHER_MIN_NS;
	else
		c->gather_ns = longer < GATHER_MAX_NS ? longer : GATHER_MAX_NS;
	c->gather_until = now + c->gather_ns;
}

static void transmit(struct pv_console *c)
{
	uint32_t used = pv_ring_used(c->output);
	uint32_t count;
	const uint8_t *data;

	if (can_write(c) && !c->blocked && c->notice)
		write_notice(c);
	if (used < threshold(c))
		return;
	if (!can_write(c)) {
		atomic_fetch_add(&c->bytes_discarded, used - BACKLOG);
		drop_output(c, used - BACKLOG);
		return;
	}
	data = pv_ring_span(c->output, &count);
	count = write_some(c, data, count);
	atomic_fetch_add(&c->bytes_out, count);
	drop_output(c, count);
	if (pv_ring_used(c->output) == 0)
		gather(c);
}

static void tell_flushers(struct pv_console *c)
{
	if (atomic_load(&c->flushing) == 0 || !pv_console_settled(c))
		return;
	pthread_mutex_lock(&c->flush_lock);
	pthread_cond_broadcast(&c->settled);
	pthread_mutex_unlock(&c->flush_lock);
}

/* Input. */

static void put_input(struct pv_console *c, uint8_t byte)
{
	if (pv_ring_put(c->input, byte) == 0)
		atomic_fetch_add(&c->bytes_in, 1);
}

static void escape(struct pv_console *c, uint8_t byte)
{
	switch (pv_escape_next(&c->escape_held, byte)) {
	case PV_ESCAPE_PASS:
		put_input(c, byte);
		break;
	case PV_ESCAPE_PREFIXED:
		put_input(c, PV_ESCAPE_PREFIX);
		put_input(c, byte);
		break;
	case PV_ESCAPE_LITERAL:
		put_input(c, PV_ESCAPE_PREFIX);
		break;
	case PV_ESCAPE_QUIT:
		if (c->quit_fd >= 0)
			pv_console_signal(c->quit_fd);
		break;
	case PV_ESCAPE_BREAK:
		notify(c, PV_CONSOLE_INPUT); /* what was typed before comes first */
		notify(c, PV_CONSOLE_BREAK);
		break;
	case PV_ESCAPE_HELP:
		c->notice = can_write(c) ? pv_escape_help : NULL;
		break;
	case PV_ESCAPE_HOLD:
		break;
	}
}

/* Two bytes: a Ctrl-A held back may come with the next one. */
static bool has_input_room(const struct pv_console *c)
{
	return pv_ring_room(c->input) >= 2;
}

static void receive(struct pv_console *c)
{
	uint8_t data[4096];
	uint32_t room = pv_ring_room(c->input) - 1;
	int64_t count;

	count = pv_stream_read(&c->in, data, room < sizeof(data) ? room : (uint32_t)sizeof(data));
	if (count == -EIO) {
		/* A terminal whose foreground is another job, or a pty that nobody has open. */
		c->pause_until = c->now + RETRY_NS;
	} else if (count <= 0 && count != -EAGAIN) {
		pv_stream_close(&c->in);
	}
	for (int64_t i = 0; i < count; i++) {
		if (c->flags & PV_CONSOLE_ESCAPE)
			escape(c, data[i]);
		else
			put_input(c, data[i]);
	}
	if (count > 0)
		notify(c, PV_CONSOLE_INPUT);
}

/* Who is there. */

static void accept_client(struct pv_console *c)
{
	int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0) {
		c->pause_until = c->now + RETRY_NS; /* as when descriptors have run out */
		return;
	}
	if (pv_stream_open_client(&c->in, fd) == 0 && pv_stream_open_client(&c->out, fd) == 0)
		atomic_store(&c->taken, true);
	else
		pv_stream_close(&c->in);
	close(fd);
}

static void hung_up(struct pv_console *c, short events)
{
	if (!c->out.pty_master) {
		close_output(c, events & POLLERR ? EPIPE : EIO);
		return;
	}
	c->away = true;
	c->blocked = false;
	c->notice = NULL;
	c->look_at = c->now + RETRY_NS;
	atomic_store(&c->taken, false);
}

static void look_for_terminal(struct pv_console *c)
{
	c->away = (pv_stream_look(&c->out, 0) & POLLHUP) != 0;
	c->look_at = c->now + RETRY_NS;
	atomic_store(&c->taken, !c->away);
}

/* The loop. */

enum { EVENT, IN, OUT, LISTEN, POLLED };

static void choose_events(struct pv_console *c, struct pollfd polled[POLLED])
{
	bool paused = c->now < c->pause_until;
	bool read = !paused && !c->away;
	bool client = !paused && c->in.fd < 0 && c->out.fd < 0;

	if (read && !has_input_room(c)) {
		atomic_store(&c->input_full, true);
		read = has_input_room(c);
	}
	/* A negative descriptor is passed over, where no events would still tell of a hang-up. */
	polled[EVENT] = (struct pollfd){.fd = c->event_fd, .events = POLLIN};
	polled[IN] = (struct pollfd){.fd = read ? c->in.fd : -1, .events = POLLIN};
	polled[OUT] = (struct pollfd){.fd = c->away ? -1 : c->out.fd};
	if (c->blocked)
		polled[OUT].events = POLLOUT;
	polled[LISTEN] = (struct pollfd){.fd = client ? c->listen_fd : -1, .events = POLLIN};
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* How long to sleep at most, in nanoseconds; FOREVER. */
static uint64_t choose_timeout(struct pv_console *c, uint32_t wake_at)
{
	uint64_t at = FOREVER;
	uint64_t deadline = atomic_load(&c->deadline);

	if (pv_ring_used(c->output) >= wake_at || (c->notice && !c->blocked))
		return 0;
	if (can_write(c) && c->now < c->gather_until)
		at = c->gather_until;
	if (c->now < c->pause_until)
		at = earlier(at, c->pause_until);
	if (c->away)
		at = earlier(at, c->look_at);
	if (deadline)
		at = earlier(at, deadline);
	if (at == FOREVER)
		return FOREVER;
	return at > c->now ? at - c->now : 0;
}

static void sleep_until_event(struct pv_console *c, struct pollfd polled[POLLED])
{
	uint32_t wake_at = threshold(c);
	uint64_t timeout;
	struct timespec limit;

	atomic_store(&c->wake_at, wake_at);
	timeout = choose_timeout(c, wake_at);
	limit.tv_sec = (time_t)(timeout / PV_NS_PER_S);
	limit.tv_nsec = (long)(timeout % PV_NS_PER_S);
	if (ppoll(polled, POLLED, timeout == FOREVER ? NULL : &limit, NULL) < 0)
		for (int i = 0; i < POLLED; i++)
			polled[i].revents = 0;
	atomic_store(&c->wake_at, PV_CONSOLE_NEVER);
	c->now = pv_console_now();
}

static void serve(struct pv_console *c, const struct pollfd polled[POLLED])
{
	uint64_t deadline = atomic_load(&c->deadline);
	uint64_t count;

	if (polled[EVENT].revents)
		while (read(c->event_fd, &count, sizeof(count)) < 0 && errno == EINTR)
			;
	if (polled[IN].revents)
		receive(c);
	if (polled[OUT].revents & POLLOUT)
		c->blocked = false;
	else if (polled[OUT].revents)
		hung_up(c, polled[OUT].revents);
	if (polled[LISTEN].revents)
		accept_client(c);
	if (c->away && c->now >= c->look_at)
		look_for_terminal(c);
	if (deadline && c->now >= deadline &&
	    atomic_compare_exchange_strong(&c->deadline, &deadline, 0))
		notify(c, PV_CONSOLE_TIMER);
}

void *pv_console_thread(void *argument)
{
	struct pv_console *c = argument;
	struct pollfd polled[POLLED];
	int state;

	pv_thread_is(PV_SANDBOX_CONSOLE, "console", "serial0");
	/* pv_stream allows it for the length of a transfer that might block. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	c->now = pv_console_now();
	while (!atomic_load(&c->stopping)) {
		transmit(c);
		tell_flushers(c);
		choose_events(c, polled);
		sleep_until_event(c, polled);
		serve(c, polled);
	}
	return NULL;
}
