/* Bytes that lie in segments. */
#ifndef PV_IOV_INTERNAL_H
#define PV_IOV_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Copy up to `length` bytes, from byte `skip` of the segments on, to `buffer`; how many there
 * were. */
size_t pv_iov_gather(const struct iovec *iov, uint32_t count, size_t skip, void *buffer,
                     size_t length);

/* The same the other way round. */
size_t pv_iov_scatter(const struct iovec *iov, uint32_t count, size_t skip, const void *buffer,
                      size_t length);

#endif
