/* Which files this process may still reach: those beneath what is named here (landlock(7)).
 *
 * The set is made before a thread is bound to it, which those of PV_SANDBOX_CONTROL are as they take
 * that list (filter.h), and with them all that they start. Threads of other lists open no files. */
#ifndef PV_SANDBOX_LANDLOCK_H
#define PV_SANDBOX_LANDLOCK_H

/* What may be done beneath a path. */
#define PV_LANDLOCK_READ 1   /* open what is there to read it, and list it */
#define PV_LANDLOCK_WRITE 2  /* to write it; make, rename and remove files, folders, sockets, links */
#define PV_LANDLOCK_REMOVE 4 /* remove files */

/* The version of the kernel's interface, 1 at least; -ENOSYS, or -EOPNOTSUPP where it is there but was
 * not asked for when the host was booted. */
int pv_landlock_version(void);
/* Begin with a set by which nothing may be reached; once in a process. -errno. */
int pv_landlock_begin(void);
/* Let what is at or beneath a path be reached. -errno of open(2), or of landlock_add_rule(2). */
int pv_landlock_allow(const char *path, int what);
/* Whether there is a set. */
int pv_landlock_is_on(void);

#endif
