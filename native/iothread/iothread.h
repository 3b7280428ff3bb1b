/* A thread that serves the queues of any number of devices: disks and NICs.
 *
 * It runs while a queue is with it, as a C thread that never touches Python. */
#ifndef PV_IOTHREAD_H
#define PV_IOTHREAD_H

struct pv_iothread;

/* `list` is that of its sandbox (sandbox/filter.h), `name` how the thread is to be known, cut to 31
 * bytes. -ENOMEM, or what eventfd(2) says. */
int pv_iothread_new(int list, const char *name, struct pv_iothread **out);
/* No device uses it. */
void pv_iothread_free(struct pv_iothread *thread);
/* Its id, as gettid(2) has it; 0 while it does not run. Any thread. */
int pv_iothread_tid(const struct pv_iothread *thread);

/* 0, or why this process may not use io_uring: -ENOSYS, -EPERM, -ENOMEM, ... */
int pv_uring_probe(void);

#endif
