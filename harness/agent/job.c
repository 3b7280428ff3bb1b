#define _GNU_SOURCE
#include "job.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    SCRATCH = 16384,
    CREDIT_STEP = INPUT_WINDOW / 16, /* fewer bytes are not worth a frame */
    STATUS_SETUP = 125,
    STATUS_NOT_EXECUTABLE = 126,
    STATUS_MISSING = 127,
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Starting. */

static _Noreturn void fail(int status, const char *what)
{
    dprintf(STDERR_FILENO, "pyvirt-agent: %.200s: %s\n", what, strerror(errno));
    _exit(status);
}

/* No exec does it: without this a pipe's other end, or the port, would stay open. */
static void close_all_others(void)
{
    if (syscall(SYS_close_range, STDERR_FILENO + 1, ~0u, 0) == 0)
        return;
    for (int fd = STDERR_FILENO + 1; fd < (int)sysconf(_SC_OPEN_MAX); fd++)
        close(fd);
}

static _Noreturn void become(const struct order *o, const int ends[3], builtin_fn builtin)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    for (int fd = 0; fd < 3; fd++)
        if (dup2(ends[fd], fd) < 0)
            _exit(STATUS_SETUP);
    if (setsid() < 0)
        fail(STATUS_SETUP, "setsid");
    if (chdir(o->cwd) < 0)
        fail(STATUS_SETUP, o->cwd);
    if (builtin) {
        close_all_others();
        _exit(builtin(o->argv));
    }
    for (char **variable = o->env; *variable; variable++)
        putenv(*variable);
    execvp(o->argv[0], o->argv);
    fail(errno == ENOENT ? STATUS_MISSING : STATUS_NOT_EXECUTABLE, o->argv[0]);
}

/* A pipe for descriptor `fd` of the command; returns our end, which does not block. */
static int open_pipe(int fd, int *theirs)
{
    int ends[2], ours;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    ours = ends[fd == STDIN_FILENO];
    *theirs = ends[fd != STDIN_FILENO];
    return fcntl(ours, F_SETFL, O_NONBLOCK) < 0 ? -errno : ours;
}

static int open_streams(struct job *j, bool input, int ends[3])
{
    if (input) {
        j->ring = malloc(INPUT_WINDOW);
        if (!j->ring)
            return -ENOMEM;
        j->in = open_pipe(STDIN_FILENO, &ends[0]);
    } else {
        ends[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    j->out[0] = open_pipe(STDOUT_FILENO, &ends[1]);
    j->out[1] = open_pipe(STDERR_FILENO, &ends[2]);
    return ends[0] < 0 || ends[1] < 0 || ends[2] < 0 ? -errno : 0;
}

int job_start(struct job *j, uint32_t id, const struct order *o, builtin_fn builtin)
{
    int ends[3] = { -1, -1, -1 }, err;

    *j = (struct job){ .id = id, .in = -1, .out = { -1, -1 }, .input_ended = !o->input };
    j->started_us = now_us();
    err = open_streams(j, o->input, ends);
    if (!err) {
        j->pid = fork();
        if (j->pid == 0)
            become(o, ends, o->builtin ? builtin : NULL);
        err = j->pid < 0 ? -errno : 0;
    }
    for (int fd = 0; fd < 3; fd++)
        close_fd(&ends[fd]);
    if (err)
        job_free(j);
    else
        j->group = j->pid;
    return err;
}

/* Its input. */

/* Nobody reads it any more: what is left, and whatever comes, counts as taken. */
static void input_close(struct job *j)
{
    close_fd(&j->in);
    j->owed += j->fill;
    j->fill = 0;
}

static void input_write(struct job *j)
{
    while (j->in >= 0 && j->fill > 0) {
        uint32_t run = INPUT_WINDOW - j->head;
        ssize_t n = write(j->in, j->ring + j->head, j->fill < run ? j->fill : run);

        if (n < 0) {
            if (errno != EAGAIN)
                input_close(j);
            return;
        }
        j->head = (j->head + (uint32_t)n) % INPUT_WINDOW;
        j->fill -= (uint32_t)n;
        j->owed += (uint32_t)n;
    }
    if (j->input_ended)
        close_fd(&j->in);
}

int job_input(struct job *j, const uint8_t *bytes, uint32_t length)
{
    if (j->input_ended || j->fill + j->owed + length > INPUT_WINDOW)
        return -EPROTO;
    if (j->in < 0) {
        j->owed += length;
        return 0;
    }
    for (uint32_t done = 0, run; done < length; done += run) {
        uint32_t at = (j->head + j->fill) % INPUT_WINDOW;

        run = length - done < INPUT_WINDOW - at ? length - done : INPUT_WINDOW - at;
        memcpy(j->ring + at, bytes + done, run);
        j->fill += run;
    }
    input_write(j);
    return 0;
}

int job_input_end(struct job *j)
{
    if (j->input_ended)
        return -EPROTO;
    j->input_ended = true;
    input_write(j);
    return 0;
}

/* Its output. */

static void output_discard(int *fd)
{
    uint8_t scratch[SCRATCH];
    ssize_t n = read(*fd, scratch, sizeof(scratch));

    if (n == 0 || (n < 0 && errno != EAGAIN))
        close_fd(fd);
}

static void output_read(struct job *j, struct link *l, int which)
{
    uint32_t room = link_room(l) - FRAME_HEADER;
    ssize_t n;

    n = read(j->out[which], link_space(l), room < FRAME_DATA_MAX ? room : FRAME_DATA_MAX);
    if (n > 0) {
        link_commit(l, j->id, which ? KIND_STDERR : KIND_STDOUT, (uint32_t)n);
        j->sent[which] += (uint64_t)n;
    } else if (n == 0 || errno != EAGAIN) {
        close_fd(&j->out[which]);
    }
}

void job_polls(const struct job *j, const struct link *l, struct pollfd polls[JOB_POLLS])
{
    bool room = j->told || link_room(l) > JOB_OUTPUT_MIN;

    /* The input is watched even when there is none: its reader may go. */
    polls[0] = (struct pollfd){ .fd = j->in, .events = j->fill > 0 ? POLLOUT : 0 };
    for (int which = 0; which < 2; which++)
        polls[1 + which] = (struct pollfd){ .fd = room ? j->out[which] : -1, .events = POLLIN };
}

void job_move(struct job *j, struct link *l, const struct pollfd polls[JOB_POLLS])
{
    if (polls[0].revents & (POLLERR | POLLNVAL))
        input_close(j);
    input_write(j);
    for (int which = 0; which < 2; which++) {
        if (!polls[1 + which].revents || j->out[which] < 0)
            continue;
        if (j->told)
            output_discard(&j->out[which]);
        else if (link_room(l) > JOB_OUTPUT_MIN)
            output_read(j, l, which);
    }
}

void job_kill(const struct job *j, int number)
{
    if (j->told)
        return;
    /* A number that is none is refused by the kernel. A child may not yet have its group. */
    if (kill(-j->group, number) < 0 && errno == ESRCH && j->pid)
        (void)kill(j->pid, number);
}

/* Its end. */

void job_ended(struct job *j, int wait_status)
{
    bool signalled = WIFSIGNALED(wait_status);

    j->pid = 0;
    j->ended_us = now_us();
    j->status = (uint32_t)(signalled ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status));
    j->flags = signalled ? EXIT_SIGNALLED : 0;
    /* What the pipes hold now is its output; what others add later need not be waited for. */
    for (int which = 0; which < 2; which++) {
        int held = 0;

        if (j->out[which] >= 0 && ioctl(j->out[which], FIONREAD, &held) == 0)
            j->goal[which] = j->sent[which] + (uint64_t)held;
    }
}

static bool output_open(const struct job *j)
{
    return j->out[0] >= 0 || j->out[1] >= 0;
}

static bool output_short(const struct job *j)
{
    return (j->out[0] >= 0 && j->sent[0] < j->goal[0]) ||
           (j->out[1] >= 0 && j->sent[1] < j->goal[1]);
}

int job_patience(const struct job *j)
{
    int64_t left = j->ended_us + JOB_GRACE_MS * 1000 - now_us();

    if (j->pid || j->told || !output_open(j) || output_short(j))
        return -1;
    return left > 0 ? (int)(left / 1000) + 1 : 0;
}

static void tell_end(struct job *j, struct link *l)
{
    uint64_t us = (uint64_t)(j->ended_us - j->started_us);
    uint32_t flags = j->flags | (output_open(j) ? EXIT_STILL_OPEN : 0);
    const uint32_t words[] = { j->status, flags, (uint32_t)us, (uint32_t)(us >> 32) };

    link_send(l, j->id, KIND_EXIT, words, 4, NULL, 0);
    close_fd(&j->in);
    j->told = true;
}

bool job_tell(struct job *j, struct link *l)
{
    if (j->told)
        return true;
    if (link_room(l) < LINK_ANSWER)
        return false;
    if (j->owed >= CREDIT_STEP) {
        link_send(l, j->id, KIND_CREDIT, &j->owed, 1, NULL, 0);
        j->owed = 0;
    }
    if (!j->pid && (!output_open(j) || job_patience(j) == 0))
        tell_end(j, l);
    return true;
}

bool job_over(const struct job *j)
{
    return j->told && !output_open(j);
}

void job_free(struct job *j)
{
    close_fd(&j->in);
    close_fd(&j->out[0]);
    close_fd(&j->out[1]);
    free(j->ring);
    j->ring = NULL;
}
