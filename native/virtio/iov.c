#include "virtio/iov_internal.h"

#include <string.h>

/* The next piece of at most `left` bytes; NULL behind the last segment. */
static char *next_piece(const struct iovec **iov, uint32_t *count, size_t *skip, size_t left,
                        size_t *length)
{
	char *piece;

	while (*count > 0 && *skip >= (*iov)->iov_len) {
		*skip -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
	if (*count == 0)
		return NULL;
	piece = (char *)(*iov)->iov_base + *skip;
	*length = (*iov)->iov_len - *skip < left ? (*iov)->iov_len - *skip : left;
	*skip += *length;
	return piece;
}

size_t pv_iov_gather(const struct iovec *iov, uint32_t count, size_t skip, void *buffer,
                     size_t length)
{
	size_t done = 0, part;
	const char *piece;

	while (done < length && (piece = next_piece(&iov, &count, &skip, length - done, &part))) {
		memcpy((char *)buffer + done, piece, part);
		done += part;
	}
	return done;
}

size_t pv_iov_scatter(const struct iovec *iov, uint32_t count, size_t skip, const void *buffer,
                      size_t length)
{
	size_t done = 0, part;
	char *piece;

	while (done < length && (piece = next_piece(&iov, &count, &skip, length - done, &part))) {
		memcpy(piece, (const char *)buffer + done, part);
		done += part;
	}
	return done;
}

size_t pv_iov_clear(const struct iovec *iov, uint32_t count, size_t length)
{
	size_t skip = 0, done = 0, part;
	char *piece;

	while (done < length && (piece = next_piece(&iov, &count, &skip, length - done, &part))) {
		memset(piece, 0, part);
		done += part;
	}
	return done;
}
