#define _GNU_SOURCE
#include "boot.h"
#include "clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

enum {
    NAP_MS = 2,
    ROOT_WAIT_MS = 10000,
    TIMER_PORT = 0x505, /* the monitor's boot timer, and its value for "init runs" */
    TIMER_ADDRESS = 0xc0000000,
    TIMER_INIT = 1,
};

/* In the order of mounting; a kernel that lacks one goes without. */
static const struct {
    const char *type, *target, *options;
    unsigned long flags;
} mounts[] = {
    { "proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
    { "sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
    { "devtmpfs", "/dev", "mode=755", MS_NOSUID },
    { "devpts", "/dev/pts", "mode=620,ptmxmode=666", MS_NOSUID | MS_NOEXEC },
    { "tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV },
    { "tmpfs", "/run", "mode=755", MS_NOSUID | MS_NODEV },
    { "tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV },
    { "debugfs", "/sys/kernel/debug", NULL, 0 },
};

static const struct {
    const char *target, *path;
} links[] = {
    { "/proc/self/fd", "/dev/fd" },
    { "fd/0", "/dev/stdin" },
    { "fd/1", "/dev/stdout" },
    { "fd/2", "/dev/stderr" },
};

/* Those that go along to another root; what is mounted in them goes with them. */
static const char *const moved[] = { "/proc", "/sys", "/dev", "/run", "/tmp" };
#define N_MOVED (sizeof(moved) / sizeof(*moved))

/* The initramfs's own, whose programs another root may lack. */
static int shell = -1;

void say(const char *format, ...)
{
    int log = getpid() == 1 ? open("/dev/kmsg", O_WRONLY | O_CLOEXEC) : -1;
    char line[512];
    va_list rest;

    va_start(rest, format);
    vsnprintf(line, sizeof(line), format, rest);
    va_end(rest);
    dprintf(log < 0 ? STDERR_FILENO : log, "%spyvirt-agent: %s\n", log < 0 ? "" : "<4>", line);
    if (log >= 0)
        close(log);
}

int read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return -errno;
    n = read(fd, text, size - 1);
    close(fd);
    if (n < 0)
        return -errno;
    text[n] = '\0';
    return (int)n;
}

/* Where the kernel has neither device, or locks both down, nothing is told. */
static void tell_boot_timer(void)
{
    int fd = open("/dev/port", O_WRONLY | O_CLOEXEC);
    ssize_t told = fd < 0 ? -1 : pwrite(fd, (const char[]){ TIMER_INIT }, 1, TIMER_PORT);
    volatile char *page;

    if (fd >= 0)
        close(fd);
    if (told == 1)
        return;
    fd = open("/dev/mem", O_RDWR | O_SYNC | O_CLOEXEC);
    if (fd < 0)
        return;
    page = mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, (off_t)TIMER_ADDRESS);
    close(fd);
    if (page == MAP_FAILED)
        return;
    *page = TIMER_INIT;
    munmap((void *)page, 4096);
}

static void mount_all(void)
{
    for (size_t i = 0; i < sizeof(mounts) / sizeof(*mounts); i++) {
        (void)mkdir(mounts[i].target, 0755);
        (void)mount(mounts[i].type, mounts[i].target, mounts[i].type, mounts[i].flags,
                    mounts[i].options);
    }
    for (size_t i = 0; i < sizeof(links) / sizeof(*links); i++)
        (void)symlink(links[i].target, links[i].path);
}

static void loopback_up(void)
{
    struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    (void)ioctl(fd, SIOCSIFFLAGS, &lo);
    close(fd);
}

static void load_module(const char *path, bool soft)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    long err = fd < 0 ? -1 : syscall(SYS_finit_module, fd, "", 0);

    if (err && !soft && errno != EEXIST)
        say("module %s was not loaded: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* A path a line, with the word "soft" after one that the kernel may refuse. */
static void load_modules(void)
{
    FILE *list = fopen("/lib/modules/load", "re");
    char *line = NULL;
    size_t size = 0;

    while (list && getline(&line, &size, list) > 0) {
        char *rest, *path = strtok_r(line, " \n", &rest);

        if (path)
            load_module(path, strtok_r(NULL, " \n", &rest) != NULL);
    }
    free(line);
    if (list)
        fclose(list);
}

void boot(void)
{
    tell_boot_timer();
    shell = open("/bin/sh", O_PATH | O_CLOEXEC);
    (void)setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    (void)setenv("HOME", "/root", 1);
    umask(022);
    mount_all();
    loopback_up();
    load_modules();
}

/* Another root. */

/* Copies the value of the word `name=` of the kernel's command line; false when it has none. */
static bool find_word(const char *name, char *value, size_t size)
{
    char line[4096], *rest, *word;

    if (read_text("/proc/cmdline", line, sizeof(line)) < 0)
        return false;
    for (word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        if (strncmp(word, name, strlen(name)) != 0)
            continue;
        snprintf(value, size, "%s", word + strlen(name));
        return true;
    }
    return false;
}

static int mount_root(const char *device, unsigned long flags)
{
    int64_t end = now_us() + ROOT_WAIT_MS * 1000;

    (void)mkdir("/newroot", 0755);
    for (;; nap(NAP_MS)) {
        if (mount(device, "/newroot", "ext4", flags, NULL) == 0)
            return 0;
        if ((errno != ENOENT && errno != ENXIO) || now_us() > end) /* else its driver is to come */
            return -errno;
    }
}

/* The file system of a tag, which nobody can write, below a tmpfs. */
static int mount_overlay(const char *tag)
{
    static const char layers[] = "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work";

    (void)mkdir("/newroot", 0755);
    (void)mkdir("/lower", 0755);
    (void)mkdir("/upper", 0755);
    if (mount(tag, "/lower", "virtiofs", MS_RDONLY, NULL) < 0 ||
        mount("tmpfs", "/upper", "tmpfs", 0, "mode=755") < 0 || mkdir("/upper/files", 0755) < 0 ||
        mkdir("/upper/work", 0755) < 0 || mount("overlay", "/newroot", "overlay", 0, layers) < 0)
        return -errno;
    return 0;
}

/* Takes along the first `n` of those that are moved. */
static int enter_root(size_t n)
{
    char target[64];

    for (size_t i = 0; i < n; i++) {
        snprintf(target, sizeof(target), "/newroot%s", moved[i]);
        (void)mkdir(target, 0755); /* it may be there, or the file system read-only */
        if (mount(moved[i], target, NULL, MS_MOVE, NULL) < 0 && errno != EINVAL)
            return -errno;
    }
    if (chdir("/newroot") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0)
        return -errno;
    return chdir("/") < 0 ? -errno : 0;
}

static int boot_disk(char *device)
{
    char *mode = strchr(device, ',');
    int err;

    if (mode)
        *mode++ = '\0';
    err = mount_root(device, mode && strcmp(mode, "ro") == 0 ? MS_RDONLY : 0);
    return err ? err : enter_root(N_MOVED);
}

/* A folder of the root, or a file system of that tag. */
static void mount_modules(const char *source)
{
    struct utsname name;
    char target[128];
    int err;

    (void)uname(&name);
    snprintf(target, sizeof(target), "/lib/modules/%s", name.release);
    (void)mkdir("/lib/modules", 0755);
    (void)mkdir(target, 0755);
    if (*source == '/')
        err = mount(source, target, NULL, MS_BIND, NULL);
    else
        err = mount(source, target, "virtiofs", MS_RDONLY, NULL);
    if (err < 0)
        say("%s: %s", target, strerror(errno));
}

/* The host's /tmp stays in sight, as all but what the kernel makes up. */
static int boot_overlay(const char *tag)
{
    char modules[1024];
    int err = mount_overlay(tag);

    if (!err)
        err = enter_root(N_MOVED - 1);
    (void)mkdir("/tmp", 01777);
    if (!err && find_word("pyvirt.modules=", modules, sizeof(modules)))
        mount_modules(modules);
    return err;
}

int boot_root(char *why, size_t size)
{
    char value[256];
    const char *name = "pyvirt.overlay=";
    int err = 0;

    if (find_word(name, value, sizeof(value)))
        err = boot_overlay(value);
    else if (find_word(name = "pyvirt.root=", value, sizeof(value)))
        err = boot_disk(value);
    if (err)
        snprintf(why, size, "%s%s: %s", name, value, strerror(-err));
    return err;
}

/* Folders of the host. */

static void mount_shares(char *tags)
{
    char *rest, *tag;

    (void)mkdir("/mnt", 0755);
    for (tag = strtok_r(tags, ",", &rest); tag; tag = strtok_r(NULL, ",", &rest)) {
        char target[64];

        snprintf(target, sizeof(target), "/mnt/%s", tag);
        (void)mkdir(target, 0755);
        if (mount(tag, target, "virtiofs", 0, NULL) < 0)
            say("share %s was not mounted: %s", tag, strerror(errno));
    }
}

void boot_shares(void)
{
    char tags[2048];

    if (find_word("pyvirt.share=", tags, sizeof(tags)))
        mount_shares(tags);
}

/* The port. */

static int find_port(const char *name, char *node, size_t size)
{
    DIR *ports = opendir("/sys/class/virtio-ports");
    int err = -ENOENT;
    struct dirent *entry;

    while (err && ports && (entry = readdir(ports))) {
        char path[300], text[128];

        snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
        if (read_text(path, text, sizeof(text)) <= 0)
            continue;
        text[strcspn(text, "\n")] = '\0';
        if (strcmp(text, name) != 0)
            continue;
        snprintf(node, size, "/dev/%s", entry->d_name);
        err = 0;
    }
    if (ports)
        closedir(ports);
    return err;
}

int boot_port(const char *name, int wait_ms)
{
    int64_t end = now_us() + (int64_t)wait_ms * 1000;
    char node[300];

    for (;; nap(NAP_MS)) {
        int err = find_port(name, node, sizeof(node));
        int fd = err ? -1 : open(node, O_RDWR | O_NONBLOCK | O_CLOEXEC);

        if (fd >= 0)
            return fd;
        /* The node comes a little after its folder in /sys. */
        err = err ? err : -errno;
        if (err != -ENOENT || now_us() > end)
            return err;
    }
}

void boot_shell(const char *why)
{
    static char script[] = "setsid cttyhack sh -l; sync;"
                           "[ ! -d /sys/firmware/acpi ] || poweroff -f; exec reboot -f";
    sigset_t none;

    say("%s; a shell runs on the console", why);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    fexecve(shell, (char *const[]){ "sh", "-c", script, NULL }, environ);
    say("/bin/sh: %s", strerror(errno));
    for (;;)
        pause();
}
