/*
 * What the agent in a guest and its client on the host say to each other.
 *
 * protocol.py describes the frames and the rules; this is the agent's side of the same.
 */
#ifndef PYVIRT_AGENT_PROTOCOL_H
#define PYVIRT_AGENT_PROTOCOL_H

enum { AGENT_VERSION = 3, AGENT_VSOCK_PORT = 1000 };

enum kind {
    KIND_MORE = 1, /* from the host */
    KIND_SPAWN,
    KIND_INPUT,
    KIND_INPUT_END,
    KIND_KILL,
    KIND_PING,
    KIND_RESET, /* from both */
    KIND_HELLO = 16, /* from the agent */
    KIND_STARTED,
    KIND_STDOUT,
    KIND_STDERR,
    KIND_CREDIT,
    KIND_EXIT,
    KIND_PONG,
    KIND_FAILED,
};

enum {
    FRAME_HEADER = 8,
    FRAME_PAYLOAD_MAX = 65535, /* all that a length of 16 bits can say */
    FRAME_DATA_MAX = 32760,    /* with its header, what one write to a virtio port takes */
    INPUT_WINDOW = 4 << 20,    /* bytes of a command's input that are under way at most */
    SPAWN_TEXT_MAX = 4 << 20,  /* of a command's strings; execve takes less */
};

enum { SPAWN_INPUT = 1, SPAWN_BUILTIN = 2 };    /* flags of SPAWN */
enum { EXIT_SIGNALLED = 1, EXIT_STILL_OPEN = 2 }; /* flags of EXIT */

#endif
