/* One command: its process group, its pipes, and what the host is told of it. */
#ifndef PYVIRT_AGENT_JOB_H
#define PYVIRT_AGENT_JOB_H

#include "link.h"
#include "order.h"

#include <poll.h>
#include <sys/types.h>

enum {
    JOB_POLLS = 3,
    JOB_OUTPUT_MIN = 4096, /* less room is not worth a read of output */
    JOB_GRACE_MS = 250, /* how long output that others keep open is waited for after the end */
};

struct job {
    struct job *next;
    uint32_t id, status, flags;
    pid_t pid; /* and its process group; 0 once it has ended */
    pid_t group;
    int64_t started_us, ended_us;
    bool told;       /* the host knows of the end, and nothing more is sent */
    int in, out[2];  /* our ends of stdin, and of stdout and stderr; -1: closed */
    uint64_t sent[2], goal[2]; /* bytes of output; what they were at the end of the command */
    uint8_t *ring;   /* of INPUT_WINDOW bytes: input that the command has not taken yet */
    uint32_t head, fill, owed;
    bool input_ended;
};

/* Runs a program of the agent's own (see builtin.c); returns its exit status. */
typedef int (*builtin_fn)(char **argv);

/* Starts a command as number `id`. Returns 0, or -errno with nothing left behind. */
int job_start(struct job *j, uint32_t id, const struct order *o, builtin_fn builtin);

/* Takes input from the host; -EPROTO when it exceeds the window or follows its end. */
int job_input(struct job *j, const uint8_t *bytes, uint32_t length);
int job_input_end(struct job *j);

/* Signals the whole process group. */
void job_kill(const struct job *j, int number);

/* What to wait for. */
void job_polls(const struct job *j, const struct link *l, struct pollfd polls[JOB_POLLS]);

/* Moves what the polls say can be moved. */
void job_move(struct job *j, struct link *l, const struct pollfd polls[JOB_POLLS]);

/* Notes the end of the process. */
void job_ended(struct job *j, int wait_status);

/* Milliseconds until the end is to be told although its output is open; -1: nothing to wait for. */
int job_patience(const struct job *j);

/* Queues what the host is to know now; false when there is no room for it. */
bool job_tell(struct job *j, struct link *l);

/* Whether nothing is left to do for it. */
bool job_over(const struct job *j);

/* Closes and frees what it holds, not itself. */
void job_free(struct job *j);

#endif
