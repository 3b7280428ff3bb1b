/* Which entries of the lists are made use of, for tests: an entry that nobody needs is to go.
 *
 * Under a record each call that a list allows, and that no process has made so far, is told of by
 * SIGSYS, noted, and then carried out; threads that take the list later make it as ever. */
#ifndef PV_SANDBOX_USE_H
#define PV_SANDBOX_USE_H

#define PV_SANDBOX_LENGTH_MAX 512 /* instructions of a list's program */
#define PV_SANDBOX_MISSED_MAX 512
#define PV_SANDBOX_RECORD_BYTES 11264

/* Keep the record in `fd`, a file of PV_SANDBOX_RECORD_BYTES, borrowed for the call; before
 * pv_sandbox_arm. -errno of mmap(2). In the file: for each list a byte for each instruction of its
 * program, 1 for one that let a call pass; then, each a uint64_t, the calls on no list that
 * PV_SANDBOX_LOG told of: 1 << 63 | list << 48 | number << 32 | selector. */
int pv_sandbox_record(int fd);

#endif
