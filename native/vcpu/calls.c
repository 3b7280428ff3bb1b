#include "vcpu/calls.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "thread_internal.h"
#include "vcpu/vcpu.h"

struct pv_calls {
	pthread_t thread;
	bool is_joined;
	/* The thread's, until it is joined. */
	int fd;
	int result;
	uint32_t at;
	uint32_t count;
	struct pv_call call[];
};

static void *run(void *argument)
{
	struct pv_calls *calls = argument;

	for (; calls->at < calls->count; calls->at++) {
		const struct pv_call *call = &calls->call[calls->at];

		calls->result = pv_ioctl(calls->fd, call->request, (void *)call->argument);
		if (calls->result < 0)
			break;
	}
	return NULL;
}

int pv_calls_begin(int fd, const struct pv_call *calls, uint32_t count, struct pv_calls **out)
{
	struct pv_calls *made = calloc(1, sizeof(*made) + count * sizeof(*calls));
	int result;

	if (!made)
		return -ENOMEM;
	made->fd = fd;
	made->count = count;
	memcpy(made->call, calls, count * sizeof(*calls));
	result = pv_thread_start(&made->thread, run, made);
	if (result < 0) {
		free(made);
		return result;
	}
	*out = made;
	return 0;
}

static void join(struct pv_calls *calls)
{
	if (!calls->is_joined)
		pthread_join(calls->thread, NULL);
	calls->is_joined = true;
}

int pv_calls_wait(struct pv_calls *calls, uint32_t *failed)
{
	join(calls);
	*failed = calls->at;
	return calls->result < 0 ? calls->result : 0;
}

void pv_calls_free(struct pv_calls *calls)
{
	if (!calls)
		return;
	join(calls);
	free(calls);
}
