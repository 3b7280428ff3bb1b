#include "vcpu/gate.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum state { CLOSED, OPEN, ENDED };

struct pv_gate {
	pthread_mutex_t lock;
	pthread_cond_t change;
	enum state state;
	unsigned inside;
	unsigned parked;
};

int pv_gate_new(struct pv_gate **out)
{
	struct pv_gate *gate = calloc(1, sizeof(*gate));

	if (!gate)
		return -ENOMEM;
	pthread_mutex_init(&gate->lock, NULL);
	pthread_cond_init(&gate->change, NULL);
	*out = gate;
	return 0;
}

void pv_gate_free(struct pv_gate *gate)
{
	if (!gate)
		return;
	pthread_cond_destroy(&gate->change);
	pthread_mutex_destroy(&gate->lock);
	free(gate);
}

void pv_gate_enter(struct pv_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	gate->inside++;
	pthread_mutex_unlock(&gate->lock);
}

int pv_gate_pass(struct pv_gate *gate)
{
	int open;

	pthread_mutex_lock(&gate->lock);
	gate->parked++;
	pthread_cond_broadcast(&gate->change);
	while (gate->state == CLOSED)
		pthread_cond_wait(&gate->change, &gate->lock);
	gate->parked--;
	open = gate->state == OPEN;
	pthread_mutex_unlock(&gate->lock);
	return open;
}

void pv_gate_leave(struct pv_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	gate->inside--;
	pthread_cond_broadcast(&gate->change);
	pthread_mutex_unlock(&gate->lock);
}

static void set_state(struct pv_gate *gate, enum state state)
{
	pthread_mutex_lock(&gate->lock);
	if (gate->state != ENDED)
		gate->state = state;
	pthread_cond_broadcast(&gate->change);
	pthread_mutex_unlock(&gate->lock);
}

void pv_gate_open(struct pv_gate *gate)
{
	set_state(gate, OPEN);
}

void pv_gate_close(struct pv_gate *gate)
{
	set_state(gate, CLOSED);
}

void pv_gate_end(struct pv_gate *gate)
{
	set_state(gate, ENDED);
}

void pv_gate_wait_parked(struct pv_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	while (gate->state == CLOSED && gate->parked < gate->inside)
		pthread_cond_wait(&gate->change, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
}

void pv_gate_wait_left(struct pv_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	while (gate->inside)
		pthread_cond_wait(&gate->change, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
}
