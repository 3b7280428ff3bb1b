/*
 * The agent: process 1 of a guest under test, or one of its programs. Runs commands for the
 * client on the host, as many at once as it likes, and moves files.
 *
 *     pyvirt-agent            serves the virtio port "pyvirt.agent", and, in processes of their
 *                             own, clients that come by the guest's socket device
 *     pyvirt-agent -fd N      serves the connected descriptor N until the client closes it
 *
 * One thread, which never waits for anything but poll(): whatever may block is a child's.
 */
#define _GNU_SOURCE
#include "boot.h"
#include "builtin.h"
#include "clock.h"
#include "job.h"
#include "link.h"
#include "vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/random.h>

#define PORT "pyvirt.agent"

enum {
    PORT_WAIT_MS = 10000,
    CLIENT_WAIT_MS = 100, /* until a client that could not be accepted is tried again */
    HOST_WAIT_MS = 5, /* between looks whether the host's side of the port is there */
    JOBS_MAX = 256,
    HOLD_MS = 5, /* how long STARTED may wait for an EXIT that goes with it */
    RESET_MAX = 64,
    STATUS_SETUP = 125,
};

struct agent {
    struct link link;
    int signals;
    builtin_fn builtin;
    struct job *jobs;
    uint32_t n_jobs;
    struct order order; /* for the command that is coming in */
    bool stalled;       /* there was something to send, and no room */
    uint32_t held;      /* bytes of STARTED at the end of which nothing is urgent */
    int64_t held_until; /* microseconds */
    struct pollfd polls[2 + JOB_POLLS * JOBS_MAX];
};

static struct job *find(const struct agent *a, uint32_t id)
{
    struct job *j = a->jobs;

    while (j && (j->id != id || j->told))
        j = j->next;
    return j;
}

/* Commands. */

/* A command that cannot even be forked ends like one that cannot be set up. */
static void tell_failure(struct agent *a, uint32_t id, int err)
{
    char line[128];
    int length = snprintf(line, sizeof(line), "pyvirt-agent: %s\n", strerror(-err));

    link_send(&a->link, id, KIND_STDERR, NULL, 0, line, (uint32_t)length);
    link_send(&a->link, id, KIND_EXIT, (const uint32_t[]){ STATUS_SETUP, 0, 0, 0 }, 4, NULL, 0);
}

static void tell_started(struct agent *a, const struct job *j)
{
    struct link *l = &a->link;
    bool alone = l->tx_len == l->tx_at || l->tx_len == a->held;

    link_send(l, j->id, KIND_STARTED, (const uint32_t[]){ (uint32_t)j->pid }, 1, NULL, 0);
    if (!alone)
        return;
    a->held = l->tx_len;
    a->held_until = now_us() + HOLD_MS * 1000;
}

static int start(struct agent *a, uint32_t id)
{
    struct job *j = a->n_jobs < JOBS_MAX ? malloc(sizeof(*j)) : NULL;
    int err = j ? job_start(j, id, &a->order, a->builtin) : -EAGAIN;

    if (err) {
        free(j);
        return err;
    }
    j->next = a->jobs;
    a->jobs = j;
    a->n_jobs++;
    tell_started(a, j);
    return 0;
}

static int spawn(struct agent *a, const struct frame *f)
{
    int err;

    order_add(&a->order, f->payload, f->length);
    err = find(a, f->id) ? -EPROTO : order_parse(&a->order);
    if (!err)
        err = start(a, f->id);
    order_clear(&a->order);
    if (!err || err == -EPROTO)
        return err;
    tell_failure(a, f->id, err);
    return 0;
}

/* The client. */

static void hello(struct agent *a)
{
    struct utsname name = { .release = "" };
    char text[32] = "";
    uint64_t taint;

    (void)uname(&name);
    (void)read_text("/proc/sys/kernel/tainted", text, sizeof(text));
    taint = strtoull(text, NULL, 10);
    link_send(&a->link, 0, KIND_HELLO,
              (const uint32_t[]){ AGENT_VERSION, (uint32_t)taint, (uint32_t)(taint >> 32) }, 3,
              name.release, (uint32_t)strlen(name.release));
}

static void drop(struct agent *a, struct job **place)
{
    struct job *j = *place;

    *place = j->next;
    a->n_jobs--;
    job_free(j);
    free(j);
}

static void end_all(struct agent *a)
{
    while (a->jobs) {
        job_kill(a->jobs, SIGKILL);
        drop(a, &a->jobs);
    }
    order_clear(&a->order);
}

/* Forks of one guest would draw the same random numbers: the client's own bytes tell them apart. */
static void reseed(const uint8_t *bytes, uint32_t length)
{
    struct {
        int bits, bytes;
        uint8_t from[RESET_MAX];
    } pool = { .bits = (int)length * 8, .bytes = (int)length }; /* struct rand_pool_info */
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);

    memcpy(pool.from, bytes, length);
    if (fd < 0)
        return;
    (void)ioctl(fd, RNDADDENTROPY, &pool);
    (void)ioctl(fd, RNDRESEEDCRNG);
    close(fd);
}

/*
 * The guest is a fork, or was restored: the client is another than the one that all this was for,
 * and what is on its way to it may begin with a part of a frame. It looks for its own bytes.
 */
static int reset(struct agent *a, const struct frame *f)
{
    if (f->length > RESET_MAX)
        return -EPROTO;
    if (a->builtin == builtin_run)
        reseed(f->payload, f->length);
    end_all(a);
    a->held = 0;
    link_forget(&a->link);
    link_send(&a->link, 0, KIND_RESET, NULL, 0, f->payload, f->length);
    hello(a);
    return 0;
}

/* Frames from the host. What is meant for a command that has ended is late, not wrong. */
static int take(struct agent *a, const struct frame *f)
{
    struct job *j = find(a, f->id);

    switch (f->kind) {
    case KIND_MORE:
        order_add(&a->order, f->payload, f->length);
        return 0;
    case KIND_SPAWN:
        return spawn(a, f);
    case KIND_INPUT:
        return j ? job_input(j, f->payload, f->length) : 0;
    case KIND_INPUT_END:
        return j ? job_input_end(j) : 0;
    case KIND_KILL:
        if (f->length != 4)
            return -EPROTO;
        if (j)
            job_kill(j, (int)get32(f->payload));
        return 0;
    case KIND_RESET:
        return reset(a, f);
    case KIND_PING:
        link_send(&a->link, f->id, KIND_PONG, NULL, 0, NULL, 0);
        return 0;
    default:
        return -EPROTO;
    }
}

static int take_all(struct agent *a)
{
    struct frame f;
    int err = 0;

    while (!err && link_room(&a->link) >= LINK_ANSWER && link_next(&a->link, &f))
        err = take(a, &f);
    a->stalled |= link_room(&a->link) < LINK_ANSWER;
    return err;
}

/* Children. */

static void reap(const struct agent *a)
{
    struct signalfd_siginfo info;
    int status;
    pid_t pid;

    while (read(a->signals, &info, sizeof(info)) > 0)
        ;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (struct job *j = a->jobs; j; j = j->next)
            if (j->pid == pid)
                job_ended(j, status);
}

static void tell_all(struct agent *a)
{
    struct job **place = &a->jobs;

    while (*place) {
        a->stalled |= !job_tell(*place, &a->link);
        if (job_over(*place))
            drop(a, place);
        else
            place = &(*place)->next;
    }
}

/* The commands at the end of the list get their turn when those before leave no room. */
static void rotate(struct agent *a)
{
    struct job *first = a->jobs, **end = &a->jobs;

    if (!first || !first->next)
        return;
    a->jobs = first->next;
    while (*end)
        end = &(*end)->next;
    *end = first;
    first->next = NULL;
}

/* One turn. */

static int sooner(int a, int b)
{
    return a < 0 || (b >= 0 && b < a) ? b : a;
}

static bool holding(const struct agent *a)
{
    return a->link.tx_len == a->held && now_us() < a->held_until;
}

static nfds_t prepare(struct agent *a, int *timeout)
{
    bool unsent = a->link.tx_at < a->link.tx_len, hold = unsent && holding(a);
    bool room = link_room(&a->link) >= LINK_ANSWER;
    nfds_t n = 2;

    a->polls[0] = (struct pollfd){ .fd = a->link.fd };
    a->polls[0].events = (short)((room ? POLLIN : 0) | (unsent && !hold ? POLLOUT : 0));
    a->polls[1] = (struct pollfd){ .fd = a->signals, .events = POLLIN };
    *timeout = a->stalled && room ? 0 : hold ? HOLD_MS : -1;
    a->stalled = false;
    for (struct job *j = a->jobs; j; j = j->next, n += JOB_POLLS) {
        job_polls(j, &a->link, a->polls + n);
        *timeout = sooner(*timeout, job_patience(j));
    }
    return n;
}

/* 1 when the host has gone, else 0 or -errno. */
static int turn(struct agent *a)
{
    int timeout, over = 0;
    nfds_t n = prepare(a, &timeout);

    while (poll(a->polls, n, timeout) < 0)
        if (errno != EINTR)
            return -errno;
    n = 2;
    for (struct job *j = a->jobs; j; j = j->next, n += JOB_POLLS)
        job_move(j, &a->link, a->polls + n);
    if (a->polls[0].revents & POLLIN)
        over = link_read(&a->link);
    else if (a->polls[0].revents & (POLLHUP | POLLERR))
        over = 1;
    if (!over)
        over = take_all(a);
    if (a->polls[1].revents)
        reap(a);
    tell_all(a);
    rotate(a);
    if (!over && !holding(a))
        over = link_flush(&a->link);
    return over;
}

/* The whole. */

static void last_words(struct agent *a, const char *why)
{
    if (link_room(&a->link) >= FRAME_HEADER + strlen(why))
        link_send(&a->link, 0, KIND_FAILED, NULL, 0, why, (uint32_t)strlen(why));
    (void)link_flush(&a->link);
}

/* Serves one client to its end, and ends what it has started. 1 or -errno. */
static int serve(struct agent *a, int fd)
{
    int over = 0;

    a->link = (struct link){ .fd = fd };
    a->held = 0;
    hello(a);
    over = link_flush(&a->link);
    while (!over)
        over = turn(a);
    if (over < 0)
        last_words(a, strerror(-over));
    end_all(a);
    return over;
}

static int watch_children(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return -errno;
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void wait_for_host(int port)
{
    struct pollfd p = { .fd = port, .events = POLLOUT };

    while (poll(&p, 1, -1) >= 0 && p.revents & POLLHUP)
        nap(HOST_WAIT_MS);
}

/* One client after the other; ends only when the port is not to be had. */
static int serve_port(struct agent *a)
{
    int port;

    while ((port = boot_port(PORT, PORT_WAIT_MS)) >= 0) {
        wait_for_host(port);
        (void)serve(a, port);
        close(port);
    }
    return port;
}

/* Leaves a process that has each client of the socket device served, if the guest has one. */
static void serve_sockets(struct agent *a)
{
    int client, listener = vsock_listen();

    if (listener < 0)
        return;
    if (fork() != 0) {
        close(listener);
        return;
    }
    signal(SIGCHLD, SIG_IGN); /* nobody waits for those who serve */
    for (;;) {
        client = vsock_accept(listener);
        if (client < 0) {
            nap(CLIENT_WAIT_MS);
            continue;
        }
        if (fork() == 0) {
            signal(SIGCHLD, SIG_DFL);
            (void)serve(a, client);
            _exit(0);
        }
        close(client);
    }
}

/* The root comes before the first client is greeted, or is told what is wrong with it. */
static _Noreturn void serve_as_init(struct agent *a)
{
    char why[320];
    int port;

    boot();
    if (boot_root(why, sizeof(why)) == 0) {
        boot_shares();
        serve_sockets(a);
        snprintf(why, sizeof(why), "port " PORT ": %s", strerror(-serve_port(a)));
    } else if ((port = boot_port(PORT, PORT_WAIT_MS)) >= 0) {
        wait_for_host(port);
        a->link = (struct link){ .fd = port };
        last_words(a, why); /* the port stays open, for it takes along what is under way in it */
    }
    boot_shell(why);
}

static int serve_fd(struct agent *a, const char *text)
{
    char *end;
    long fd = strtol(text, &end, 10);
    int over = -EBADF;

    if (*text && !*end && fd >= 0 && fd <= INT_MAX && fcntl((int)fd, F_SETFL, O_NONBLOCK) == 0 &&
        fcntl((int)fd, F_SETFD, FD_CLOEXEC) == 0)
        over = serve(a, (int)fd);
    return over;
}

/* Descriptors 0 to 2 are the commands' own: none of ours may have such a number. */
static void fill_standard_streams(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    close(fd);
}

int main(int argc, char **argv)
{
    bool init = getpid() == 1, by_number = !init && argc == 3 && strcmp(argv[1], "-fd") == 0;
    struct agent *a;
    int over;

    if (!init && argc != 1 && !by_number) {
        fputs("usage: pyvirt-agent [-fd N]\n", stderr);
        return 2;
    }
    fill_standard_streams();
    a = calloc(1, sizeof(*a));
    if (!a || (a->signals = watch_children()) < 0) {
        say("start: %s", strerror(errno));
        return 1;
    }
    a->builtin = by_number ? builtin_run_on_host : builtin_run;
    if (init)
        serve_as_init(a);
    if (!by_number)
        serve_sockets(a);
    over = by_number ? serve_fd(a, argv[2]) : serve_port(a);
    if (over < 0)
        say("%s: %s", by_number ? argv[2] : PORT, strerror(-over));
    free(a);
    return over < 0;
}
