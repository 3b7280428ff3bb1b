#define _GNU_SOURCE
#include "builtin.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COPY_SIZE = 65536, STATUS_FAILED = 1, STATUS_ABSENT = 2 };

static int fail(const char *what, int error)
{
    dprintf(STDERR_FILENO, "%s: %s\n", what, strerror(error));
    return STATUS_FAILED;
}

static int write_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, length);

        if (n < 0)
            return -errno;
        bytes += n;
        length -= (size_t)n;
    }
    return 0;
}

static int copy(int from, int to)
{
    uint8_t buffer[COPY_SIZE];
    ssize_t n;
    int err = 0;

    while (!err && (n = read(from, buffer, sizeof(buffer))) != 0)
        err = n < 0 ? -errno : write_all(to, buffer, (size_t)n);
    return err;
}

static int get(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), err = fd < 0 ? -errno : copy(fd, STDOUT_FILENO);

    return err ? fail(path, -err) : 0;
}

/* Makes the folders that lead to `path`. */
static void make_parents(char *path)
{
    for (char *p = path + 1; *p; p++)
        if (*p == '/') {
            *p = '\0';
            (void)mkdir(path, 0755); /* what stands in the way shows when the file is made */
            *p = '/';
        }
}

/* Copies stdin to `to`; -EINTR after SIGTERM, by which a client that gives up asks to stop. */
static int receive(int to)
{
    uint8_t buffer[COPY_SIZE];
    struct pollfd polls[2] = { { .fd = STDIN_FILENO, .events = POLLIN }, { .events = POLLIN } };
    sigset_t set;
    ssize_t n;
    int err;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    polls[1].fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (polls[1].fd < 0)
        return -errno;
    for (;;) {
        if (poll(polls, 2, -1) < 0)
            return -errno;
        if (polls[1].revents)
            return -EINTR;
        n = read(STDIN_FILENO, buffer, sizeof(buffer));
        if (n <= 0)
            return n < 0 ? -errno : 0;
        err = write_all(to, buffer, (size_t)n);
        if (err)
            return err;
    }
}

/* Files of the kernel's own, in /proc or /sys, take what is written but no other name. */
static int put_in_place(const char *path, int error)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC), err;

    if (fd < 0)
        return -error;
    err = receive(fd);
    return close(fd) < 0 && !err ? -errno : err;
}

static int put(char *path, mode_t mode)
{
    char part[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash - path) + 1 : 0, fd, err;

    if (snprintf(part, sizeof(part), "%.*s.pyvirt-%d", folder, path, getpid()) >= PATH_MAX)
        return -ENAMETOOLONG;
    make_parents(path);
    fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return put_in_place(path, errno);
    err = receive(fd);
    if (!err && fchmod(fd, mode) < 0)
        err = -errno;
    if (close(fd) < 0 && !err)
        err = -errno;
    if (!err && rename(part, path) < 0)
        err = -errno;
    if (err)
        unlink(part);
    return err;
}

static int exists(const char *path)
{
    struct stat found;

    if (stat(path, &found) == 0)
        return 0;
    return errno == ENOENT || errno == ENOTDIR ? STATUS_ABSENT : fail(path, errno);
}

static int crash(void)
{
    int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);

    return fd < 0 || write(fd, "c", 1) < 0 ? fail("/proc/sysrq-trigger", errno) : 0;
}

static int power(const char *how)
{
    int command = strcmp(how, "off") == 0 ? RB_POWER_OFF : RB_AUTOBOOT;

    if (strcmp(how, "crash") == 0)
        return crash();
    if (command != RB_POWER_OFF && strcmp(how, "reboot") != 0)
        return fail(how, EINVAL);
    (void)kill(-1, SIGKILL); /* all but process 1 and this one, so that no file is being written */
    sync();
    (void)mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    /* Without ACPI a kernel can halt but not power off; a reset ends the machine as well. */
    if (command == RB_POWER_OFF && access("/sys/firmware/acpi", F_OK) < 0)
        command = RB_AUTOBOOT;
    reboot(command);
    return fail("reboot", errno);
}

int builtin_run_on_host(char **argv)
{
    const char *name = argv[0];
    int err;

    if (strcmp(name, "get") == 0 && argv[1])
        return get(argv[1]);
    if (strcmp(name, "exists") == 0 && argv[1])
        return exists(argv[1]);
    if (strcmp(name, "put") == 0 && argv[1] && argv[2]) {
        err = put(argv[1], (mode_t)strtoul(argv[2], NULL, 8) & 07777);
        return err ? fail(argv[1], -err) : 0;
    }
    return fail(name, ENOSYS);
}

int builtin_run(char **argv)
{
    return strcmp(argv[0], "power") == 0 && argv[1] ? power(argv[1]) : builtin_run_on_host(argv);
}
