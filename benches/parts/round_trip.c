/* One byte there and back, over TCP, for as long as it is asked to.
 *
 *     round_trip server PORT                     serves clients; of some the end is never heard, as
 *                                                their machine ended with them
 *     round_trip client ADDRESS PORT SECONDS     prints how often it went there and back
 *
 * Static, so that it runs in a guest that has no C library. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void hurry(int fd)
{
    int on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static int serve(struct sockaddr_in *at)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(listener, (struct sockaddr *)at, sizeof(*at)) || listen(listener, 4)) {
        perror("round_trip: listen");
        return 1;
    }
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        char byte;

        if (peer < 0)
            return 1;
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            hurry(peer);
            while (read(peer, &byte, 1) == 1 && write(peer, &byte, 1) == 1)
                ;
            _exit(0);
        }
        close(peer);
    }
}

static int measure(const struct sockaddr_in *at, double seconds)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    unsigned long trips = 0;
    double begin, end;
    char byte = 0;

    if (connect(fd, (const struct sockaddr *)at, sizeof(*at))) {
        perror("round_trip: connect");
        return 1;
    }
    hurry(fd);
    begin = now();
    do {
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
            return 1;
        trips++;
        end = now();
    } while (end - begin < seconds);
    printf("%lu %.6f\n", trips, end - begin);
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET};

    if (argc == 3 && !strcmp(argv[1], "server")) {
        at.sin_port = htons((unsigned short)atoi(argv[2]));
        return serve(&at);
    }
    if (argc == 5 && !strcmp(argv[1], "client") &&
        inet_pton(AF_INET, argv[2], &at.sin_addr) == 1) {
        at.sin_port = htons((unsigned short)atoi(argv[3]));
        return measure(&at, atof(argv[4]));
    }
    fputs("usage: round_trip server PORT | client ADDRESS PORT SECONDS\n", stderr);
    return 2;
}
