/* What is done to many small files, one after the other.
 *
 *     small_files create|stat|read|unlink FOLDER COUNT     prints how many, and the seconds
 *
 * The files are FOLDER/0 and on, of a page each. Static, so that it runs in a guest that has no C
 * library. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char page[4096];

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int create_one(const char *path)
{
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

    return fd < 0 || write(fd, page, sizeof(page)) != sizeof(page) || close(fd);
}

static int stat_one(const char *path)
{
    struct stat st;

    return stat(path, &st) || st.st_size != sizeof(page);
}

static int read_one(const char *path)
{
    int fd = open(path, O_RDONLY);

    return fd < 0 || read(fd, page, sizeof(page)) != sizeof(page) || close(fd);
}

static const struct {
    const char *name;
    int (*one)(const char *path);
} jobs[] = { { "create", create_one },
             { "stat", stat_one },
             { "read", read_one },
             { "unlink", unlink } };

static int measure(int (*one)(const char *path), const char *folder, int count)
{
    double begin = now();

    for (int i = 0; i < count; i++) {
        char path[256];

        snprintf(path, sizeof(path), "%s/%d", folder, i);
        if (one(path)) {
            perror(path);
            return 1;
        }
    }
    printf("%d %.6f\n", count, now() - begin);
    return 0;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 4 && i < sizeof(jobs) / sizeof(*jobs); i++)
        if (!strcmp(argv[1], jobs[i].name))
            return measure(jobs[i].one, argv[2], atoi(argv[3]));
    fputs("usage: small_files create|stat|read|unlink FOLDER COUNT\n", stderr);
    return 2;
}
