/* Clients that come to the agent through the guest's socket device (AF_VSOCK). */
#ifndef PYVIRT_AGENT_VSOCK_H
#define PYVIRT_AGENT_VSOCK_H

/* A socket that listens on the agent's port; -errno: the guest has no socket device, say. */
int vsock_listen(void);

/* Waits for a client of the host's: its descriptor, which does not block; -errno. */
int vsock_accept(int listener);

#endif
