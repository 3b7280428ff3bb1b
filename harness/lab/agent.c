/*
 * The lab's agent: runs one command for the client on the host and carries its streams.
 *
 *     agent PORT ROOT
 *
 * PORT is the virtio-serial port (waited for), or the number of an open descriptor. ROOT is
 * the root directory of the command. The agent ends when the host closes its side: status
 * 0, or 1 after a line on stderr when something failed.
 */
#define _GNU_SOURCE
#include "mux.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum {
    PORT_WAIT_MS = 5000,
    BEAT_MS = 1000,
    TEXT_TOTAL = 8 << 20, /* of all arguments and environment strings; execve takes less */
};

/* Where starting the command failed, as FAILED tells it. */
enum stage { STAGE_SETUP = 1, STAGE_CWD, STAGE_EXEC };

struct strings {
    char **list; /* ends with NULL once it is not empty */
    size_t count;
};

struct agent {
    struct mux mux;
    bool chrooted;
    struct strings arguments, environment;
    size_t text; /* bytes in both */
    char *cwd;
    int terminal; /* the pty's slave side, open until the command has ended; or -1 */
    pid_t child;
    time_t beat; /* when the last ALIVE was sent, in seconds */
    bool ended, told; /* the command is over; the host knows */
    uint32_t status;
    uint64_t goals[CH_COUNT]; /* bytes of each channel to be sent before the host is told */
};

static uint32_t word(const struct frame *f, uint32_t at)
{
    const uint8_t *p = f->payload + at;

    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint16_t half(const struct frame *f, uint32_t at)
{
    return (uint16_t)(f->payload[at] | f->payload[at + 1] << 8);
}

/* What the command is to be. */

static int strings_add(struct agent *a, struct strings *s, const struct frame *f)
{
    char **list;

    if (f->length >= MUX_TEXT_MAX || a->text + f->length > TEXT_TOTAL)
        return -E2BIG;
    list = realloc(s->list, (s->count + 2) * sizeof(*list));
    if (!list)
        return -ENOMEM;
    s->list = list;
    list[s->count] = strndup((const char *)f->payload, f->length);
    if (!list[s->count])
        return -ENOMEM;
    list[++s->count] = NULL;
    a->text += f->length + 1;
    return 0;
}

static int set_cwd(struct agent *a, const struct frame *f)
{
    free(a->cwd);
    a->cwd = strndup((const char *)f->payload, f->length);
    return a->cwd ? 0 : -ENOMEM;
}

static int set_size(int terminal, uint16_t rows, uint16_t columns)
{
    struct winsize size = { .ws_row = rows, .ws_col = columns };

    return ioctl(terminal, TIOCSWINSZ, &size) < 0 ? -errno : 0;
}

/* Its streams. */

static int nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

/* A pipe for descriptor `fd` of the command; `*end` is the side that it gets. */
static int open_pipe(struct agent *a, int fd, int *end)
{
    static const uint16_t channels[] = { CH_STDIN, CH_STDOUT, CH_STDERR };
    int ends[2], ours, err;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    ours = fd == STDIN_FILENO ? ends[1] : ends[0];
    *end = fd == STDIN_FILENO ? ends[0] : ends[1];
    err = nonblocking(ours);
    if (!err)
        err = fd == STDIN_FILENO ? mux_open(&a->mux, channels[fd], -1, ours)
                                 : mux_open(&a->mux, channels[fd], ours, -1);
    if (err) {
        close(ours);
        return err;
    }
    /* The direction that a stream has not is over from the start, on both sides. */
    a->mux.channels[channels[fd]].eof_sent = fd == STDIN_FILENO;
    a->mux.channels[channels[fd]].eof_received = fd != STDIN_FILENO;
    return 0;
}

static void keep_newlines(int terminal)
{
    struct termios mode;

    if (tcgetattr(terminal, &mode) == 0) {
        mode.c_oflag &= ~(tcflag_t)OPOST;
        tcsetattr(terminal, TCSANOW, &mode);
    }
}

/* A host terminal that is written to but not read stays cooked and adds its own returns. */
static int open_terminal(struct agent *a, const struct frame *start)
{
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), unlocked = 0, copy;

    if (master < 0)
        return -errno;
    if (ioctl(master, TIOCSPTLCK, &unlocked) == 0)
        a->terminal = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    copy = fcntl(master, F_DUPFD_CLOEXEC, 0);
    if (a->terminal < 0 || copy < 0 || mux_open(&a->mux, CH_TERMINAL, master, copy) < 0) {
        close(copy);
        close(master);
        return -ENOTTY;
    }
    if (!(half(start, 0) & 1))
        keep_newlines(a->terminal);
    return set_size(a->terminal, half(start, 4), half(start, 6));
}

static int open_streams(struct agent *a, const struct frame *start, int ends[3])
{
    uint16_t mask = half(start, 0);
    int err = mask ? open_terminal(a, start) : 0;

    for (int fd = 0; fd < 3 && !err; fd++) {
        if (mask >> fd & 1)
            ends[fd] = a->terminal;
        else
            err = open_pipe(a, fd, &ends[fd]);
    }
    return err;
}

static void close_ends(const struct agent *a, const int ends[3])
{
    for (int fd = 0; fd < 3; fd++)
        if (ends[fd] >= 0 && ends[fd] != a->terminal)
            close(ends[fd]);
}

/* Starting it. */

struct failure {
    uint32_t stage, error;
};

static struct failure become(const struct agent *a, const int ends[3], mode_t mask)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    umask(mask);
    if (setsid() < 0 || (a->terminal >= 0 && ioctl(a->terminal, TIOCSCTTY, 0) < 0))
        return (struct failure){ STAGE_SETUP, (uint32_t)errno };
    for (int fd = 0; fd < 3; fd++)
        if (dup2(ends[fd], fd) < 0)
            return (struct failure){ STAGE_SETUP, (uint32_t)errno };
    if (chdir(a->cwd ? a->cwd : "/") < 0)
        return (struct failure){ STAGE_CWD, (uint32_t)errno };
    environ = a->environment.list;
    execvp(a->arguments.list[0], a->arguments.list);
    return (struct failure){ STAGE_EXEC, (uint32_t)errno };
}

/* Forks; the child reports on a pipe that a successful exec closes. */
static struct failure spawn(struct agent *a, const int ends[3], mode_t mask)
{
    struct failure failure = { 0, 0 };
    int report[2];
    ssize_t n;

    if (pipe2(report, O_CLOEXEC) < 0)
        return (struct failure){ STAGE_SETUP, (uint32_t)errno };
    a->child = fork();
    if (a->child == 0) {
        failure = become(a, ends, mask);
        n = write(report[1], &failure, sizeof(failure));
        _exit(n == (ssize_t)sizeof(failure) ? 127 : 126);
    }
    if (a->child < 0)
        failure = (struct failure){ STAGE_SETUP, (uint32_t)errno };
    close(report[1]);
    do
        n = a->child < 0 ? 0 : read(report[0], &failure, sizeof(failure));
    while (n < 0 && errno == EINTR);
    close(report[0]);
    return failure;
}

static int start(struct agent *a, const struct frame *f)
{
    int ends[3] = { -1, -1, -1 }, err;
    struct failure failure;

    if (f->length != 8 || a->arguments.count == 0 || a->child)
        return -EPROTO;
    err = open_streams(a, f, ends);
    failure = err ? (struct failure){ STAGE_SETUP, (uint32_t)-err } : spawn(a, ends, half(f, 2));
    close_ends(a, ends);
    if (failure.stage == 0)
        return 0;
    a->told = true;
    return mux_control(&a->mux, KIND_FAILED, (const uint32_t[]){ failure.stage, failure.error }, 2);
}

static int resize(const struct agent *a, const struct frame *f)
{
    if (a->terminal >= 0)
        (void)set_size(a->terminal, half(f, 0), half(f, 2));
    return 0;
}

static int pass_signal(const struct agent *a, const struct frame *f)
{
    if (a->child > 0 && !a->ended)
        (void)kill(-a->child, (int)word(f, 0)); /* a bad number is refused by the kernel */
    return 0;
}

static int control(void *context, const struct frame *f)
{
    struct agent *a = context;

    switch (f->kind) {
    case KIND_ARG:
        return strings_add(a, &a->arguments, f);
    case KIND_ENV:
        return strings_add(a, &a->environment, f);
    case KIND_CWD:
        return set_cwd(a, f);
    case KIND_START:
        return start(a, f);
    case KIND_WINSIZE:
        return f->length == 4 ? resize(a, f) : -EPROTO;
    case KIND_SIGNAL:
        return f->length == 4 ? pass_signal(a, f) : -EPROTO;
    case KIND_ALIVE: /* its interrupt is all that it is for */
        return 0;
    default:
        return -EPROTO;
    }
}

/* Its end. */

/*
 * What the command's pipes and sockets hold now is its output; what a process that it
 * leaves behind may add later is not waited for.
 */
static void note_goals(struct agent *a)
{
    for (int n = 0; n < CH_COUNT; n++) {
        const struct channel *c = &a->mux.channels[n];
        int bytes = 0;

        if (c->used && c->source >= 0 && ioctl(c->source, FIONREAD, &bytes) == 0)
            a->goals[n] = c->sent + (uint64_t)bytes;
    }
}

static void reap(struct agent *a, int signals)
{
    struct signalfd_siginfo info;
    int status;

    if (read(signals, &info, sizeof(info)) < 0 || a->child <= 0 || a->ended)
        return;
    if (waitpid(a->child, &status, WNOHANG) != a->child)
        return;
    a->ended = true;
    a->status = (uint32_t)(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
    note_goals(a);
    if (a->terminal >= 0)
        close(a->terminal);
    a->terminal = -1;
}

/* poll() on a pty's master first takes over what is on its way from the other side. */
static bool terminal_idle(const struct channel *c)
{
    struct pollfd p = { .fd = c->source, .events = POLLIN };

    return !c->used || c->source < 0 || (poll(&p, 1, 0) >= 0 && !(p.revents & POLLIN));
}

static bool output_sent(const struct agent *a)
{
    for (int n = 0; n < CH_COUNT; n++) {
        const struct channel *c = &a->mux.channels[n];

        if (n != CH_TERMINAL && c->used && c->source >= 0 && c->sent < a->goals[n])
            return false;
    }
    return terminal_idle(&a->mux.channels[CH_TERMINAL]);
}

/* The files that the command wrote are the host's, and complete, before it hears of the end. */
static void tell(struct agent *a)
{
    if (a->told || !a->ended || !output_sent(a))
        return;
    if (a->chrooted)
        sync();
    if (mux_control(&a->mux, KIND_EXIT, &a->status, 1) == 0)
        a->told = true;
}

/* The whole. */

/* Where there is no room, other frames are on their way and tell the same. */
static void beat(struct agent *a)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec == a->beat)
        return;
    a->beat = now.tv_sec;
    (void)mux_control(&a->mux, KIND_ALIVE, NULL, 0);
}

static int serve(struct agent *a, int signals)
{
    int over = mux_control(&a->mux, KIND_HELLO, &(const uint32_t){ MUX_VERSION }, 1);

    while (!over) {
        over = mux_turn(&a->mux, signals, BEAT_MS, control, a);
        reap(a, signals);
        beat(a);
        tell(a);
    }
    return over;
}

static void nap(void)
{
    const struct timespec two_ms = { .tv_nsec = 2000000 };

    nanosleep(&two_ms, NULL);
}

/* The port's node comes a little after its driver, and the host's side a little later. */
static int open_port(const char *name)
{
    int port = -1;
    char *end;
    long number = strtol(name, &end, 10);

    if (*name && !*end) {
        port = (int)number;
        return nonblocking(port) || fcntl(port, F_SETFD, FD_CLOEXEC) < 0 ? -1 : port;
    }
    for (int left = PORT_WAIT_MS / 2; left > 0; left--, nap()) {
        struct pollfd p = { .events = POLLOUT };

        if (port < 0)
            port = open(name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (port < 0 && errno != ENOENT && errno != ENXIO)
            return -1;
        p.fd = port;
        if (port >= 0 && poll(&p, 1, 0) > 0 && !(p.revents & POLLHUP))
            return port;
    }
    errno = ETIMEDOUT;
    return -1;
}

static int watch_children(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return -1;
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static int fail(const char *what, int error)
{
    fprintf(stderr, "agent: %s: %s\n", what, strerror(error));
    return 1;
}

static void agent_free(struct agent *a)
{
    /* The other end has gone: nobody is left to end the command. */
    if (a->child > 0 && !a->ended)
        (void)kill(-a->child, SIGKILL);
    mux_free(&a->mux);
    for (size_t i = 0; i < a->arguments.count; i++)
        free(a->arguments.list[i]);
    for (size_t i = 0; i < a->environment.count; i++)
        free(a->environment.list[i]);
    free(a->arguments.list);
    free(a->environment.list);
    free(a->cwd);
    free(a);
}

/* Makes `root` the root of all mounts: processes in a mere chroot get no user namespace. */
static int enter(const char *root)
{
    if (chdir(root) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0)
        return -1;
    return chroot(".");
}

static int serve_port(int port, int signals, bool chrooted)
{
    struct agent *a = calloc(1, sizeof(*a));
    int over;

    if (!a)
        return fail("start", errno);
    mux_init(&a->mux, port);
    a->chrooted = chrooted;
    a->terminal = -1;
    over = serve(a, signals);
    agent_free(a);
    return over < 0 ? fail("the connection", -over) : 0;
}

int main(int argc, char **argv)
{
    int port, signals;
    bool chrooted;

    if (argc != 3)
        return fail("usage: agent PORT ROOT", EINVAL);
    port = open_port(argv[1]);
    if (port < 0)
        return fail(argv[1], errno);
    chrooted = strcmp(argv[2], "/") != 0;
    if (chrooted && enter(argv[2]) < 0)
        return fail(argv[2], errno);
    signals = watch_children();
    if (signals < 0)
        return fail("signals", errno);
    return serve_port(port, signals, chrooted);
}
