/* What process 1 does before there is anybody to serve. */
#ifndef PYVIRT_AGENT_BOOT_H
#define PYVIRT_AGENT_BOOT_H

#include <stddef.h>

/* Mounts what programs expect, loads the modules of the initramfs, brings the loopback up. */
void boot(void);

/*
 * Makes the file system that pyvirt.root=DEVICE[,ro] on the kernel command line names the root, or
 * that of the tag in pyvirt.overlay=TAG, below a tmpfs and with the modules of
 * pyvirt.modules=PATH|TAG, if it names one. Returns 0, or -errno after putting into `why` what failed.
 */
int boot_root(char *why, size_t size);

/* Mounts the folders of the host that the kernel's command line names: pyvirt.share=TAG,TAG. */
void boot_shares(void);

/*
 * Opens the virtio port `name`, waiting `wait_ms` for it to appear. Returns the descriptor, which
 * does not block, or -errno.
 */
int boot_port(const char *name, int wait_ms);

/* A shell on the console, for whoever booted this by hand; the machine goes off when it ends. */
_Noreturn void boot_shell(const char *why);

/* Reads a small file and ends it with NUL. Returns its length, or -errno. */
int read_text(const char *path, char *text, size_t size);

/* Puts a line into the kernel's log, or on stderr where that is not to be had. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

#endif
