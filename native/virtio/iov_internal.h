/* Bytes that lie in segments. */
#ifndef PV_IOV_INTERNAL_H
#define PV_IOV_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* What of a request's buffer is zeroed at most because no data went there: more than drivers ask
 * for at once, and little enough for a hostile one that offers gigabytes in a few descriptors. */
#define PV_IOV_CLEAR_BYTES (4 * 1024 * 1024)

/* Copy up to `length` bytes, from byte `skip` of the segments on, to `buffer`; how many there
 * were. */
size_t pv_iov_gather(const struct iovec *iov, uint32_t count, size_t skip, void *buffer,
                     size_t length);

/* The same the other way round. */
size_t pv_iov_scatter(const struct iovec *iov, uint32_t count, size_t skip, const void *buffer,
                      size_t length);

/* Zero up to `length` bytes from the first one on; how many there were. */
size_t pv_iov_clear(const struct iovec *iov, uint32_t count, size_t length);

#endif
