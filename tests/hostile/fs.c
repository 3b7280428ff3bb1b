#include "fs.h"

#define FUSE_INIT 26
#define FUSE_MAJOR 7
#define FUSE_MINOR 31
#define ANSWER_BYTES (sizeof(struct fuse_out) + 64)

struct fuse_in {
	uint32_t length, operation;
	uint64_t unique, node;
	uint32_t user, group, process, padding;
	uint32_t major, minor, readahead, flags; /* of FUSE_INIT */
};

struct fuse_out {
	uint32_t length;
	int32_t error;
	uint64_t unique;
};

void fs_fill(const struct device *device, struct request *request)
{
	static uint64_t unique;
	struct fuse_in *in = request_add(request, sizeof(*in), OUT);

	(void)device;
	in->length = sizeof(*in);
	in->operation = FUSE_INIT;
	in->unique = ++unique;
	in->major = FUSE_MAJOR;
	in->minor = FUSE_MINOR;
	request_add(request, ANSWER_BYTES, IN);
}

enum outcome fs_judge(const struct request *request, uint32_t length)
{
	const struct fuse_in *in = request->segments[0].at;
	const struct fuse_out *out = request->segments[1].at;

	if (length == 0)
		return OUTCOME_NOTHING;
	if (length < sizeof(*out) || out->length > ANSWER_BYTES || out->unique != in->unique)
		return OUTCOME_BAD;
	return out->error ? OUTCOME_ERROR : OUTCOME_SERVED;
}
