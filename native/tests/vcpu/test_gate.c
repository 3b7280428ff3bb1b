/* The gate with vCPU-like threads that never rest while it is opened, closed and ended. */
#include "vcpu/gate.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "tests/check.h"

enum { THREADS = 4, ROUNDS = 300 };

struct runner {
	struct pv_gate *gate;
	_Atomic unsigned long passes;
	pthread_t thread;
};

static void *run(void *opaque)
{
	struct runner *runner = opaque;

	while (pv_gate_pass(runner->gate))
		runner->passes++;
	pv_gate_leave(runner->gate);
	return NULL;
}

static void start(struct runner *runners, struct pv_gate *gate)
{
	for (int i = 0; i < THREADS; i++) {
		runners[i].gate = gate;
		pv_gate_enter(gate);
		CHECK(pthread_create(&runners[i].thread, NULL, run, &runners[i]) == 0);
	}
}

static void join(struct runner *runners)
{
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(runners[i].thread, NULL) == 0);
}

static unsigned long total(struct runner *runners)
{
	unsigned long sum = 0;

	for (int i = 0; i < THREADS; i++)
		sum += runners[i].passes;
	return sum;
}

static void test_nobody_passes_a_closed_gate(void)
{
	struct runner runners[THREADS] = {0};
	struct pv_gate *gate;

	CHECK_EQ(pv_gate_new(&gate), 0);
	start(runners, gate);
	pv_gate_wait_parked(gate);
	CHECK_EQ(total(runners), 0);
	for (int i = 0; i < ROUNDS; i++) {
		unsigned long before;

		pv_gate_open(gate);
		usleep(50);
		pv_gate_close(gate);
		pv_gate_wait_parked(gate);
		before = total(runners);
		usleep(20);
		CHECK_EQ(total(runners), before);
	}
	CHECK(total(runners) > 0);
	pv_gate_end(gate);
	pv_gate_wait_left(gate);
	join(runners);
	pv_gate_free(gate);
}

static void test_the_end_is_for_good(void)
{
	struct pv_gate *gate;

	CHECK_EQ(pv_gate_new(&gate), 0);
	pv_gate_open(gate);
	pv_gate_end(gate);
	pv_gate_open(gate);
	CHECK_EQ(pv_gate_pass(gate), 0);
	pv_gate_close(gate);
	CHECK_EQ(pv_gate_pass(gate), 0);
	pv_gate_wait_parked(gate);
	pv_gate_wait_left(gate);
	pv_gate_free(gate);
}

static void test_the_end_frees_who_waits_for_the_parked(void)
{
	struct runner runners[THREADS] = {0};
	struct pv_gate *gate;

	CHECK_EQ(pv_gate_new(&gate), 0);
	start(runners, gate);
	pv_gate_enter(gate); /* one that never comes to the gate */
	pv_gate_end(gate);
	pv_gate_wait_parked(gate);
	pv_gate_leave(gate);
	pv_gate_wait_left(gate);
	join(runners);
	pv_gate_free(gate);
}

/* Who waits for all to leave is told by the last of them, however they come together. */
static void test_the_last_one_ends_the_wait(void)
{
	for (int i = 0; i < ROUNDS; i++) {
		struct runner runner = {0};

		CHECK_EQ(pv_gate_new(&runner.gate), 0);
		pv_gate_end(runner.gate);
		pv_gate_enter(runner.gate);
		CHECK(pthread_create(&runner.thread, NULL, run, &runner) == 0);
		pv_gate_wait_left(runner.gate);
		CHECK(pthread_join(runner.thread, NULL) == 0);
		pv_gate_free(runner.gate);
	}
}

int main(void)
{
	test_nobody_passes_a_closed_gate();
	test_the_end_is_for_good();
	test_the_end_frees_who_waits_for_the_parked();
	test_the_last_one_ends_the_wait();
	return 0;
}
