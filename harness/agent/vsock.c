#define _GNU_SOURCE
#include "vsock.h"

#include "protocol.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

enum { BACKLOG = 16 };

int vsock_listen(void)
{
    const struct sockaddr_vm address = {
        .svm_family = AF_VSOCK,
        .svm_cid = VMADDR_CID_ANY,
        .svm_port = AGENT_VSOCK_PORT,
    };
    int err, fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
        listen(fd, BACKLOG) == 0)
        return fd;
    err = -errno;
    close(fd);
    return err;
}

/* The guest's own processes may reach the port too, and are not to become root by it. */
int vsock_accept(int listener)
{
    struct sockaddr_vm peer;
    socklen_t size;
    int fd;

    for (;;) {
        size = sizeof(peer);
        fd = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return -errno;
        if (peer.svm_cid == VMADDR_CID_HOST)
            return fd;
        close(fd);
    }
}
