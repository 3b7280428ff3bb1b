#include "virtio/fault_internal.h"

#include <errno.h>
#include <string.h>

#define SECTOR 512
#define OPS 255

void pv_faults_init(struct pv_faults *f)
{
	memset(f, 0, sizeof(*f));
	pthread_mutex_init(&f->lock, NULL);
}

void pv_faults_destroy(struct pv_faults *f)
{
	pthread_mutex_destroy(&f->lock);
}

static bool is_spent(const struct pv_fault_state *rule)
{
	return rule->fault.count > 0 && rule->hits >= rule->fault.count;
}

/* With the lock held. */
static void arm(struct pv_faults *f, bool broken)
{
	uint32_t armed = broken ? PV_FAULT_BROKEN : 0;

	for (uint32_t i = 0; i < f->count; i++)
		if (!is_spent(&f->rules[i]))
			armed |= f->rules[i].fault.ops;
	atomic_store(&f->armed, armed);
}

static bool is_broken(const struct pv_faults *f)
{
	return (pv_faults_armed(f) & PV_FAULT_BROKEN) != 0;
}

void pv_faults_set_broken(struct pv_faults *f, bool broken)
{
	pthread_mutex_lock(&f->lock);
	arm(f, broken);
	pthread_mutex_unlock(&f->lock);
}

static bool is_valid(const struct pv_fault *fault)
{
	return fault->kind >= PV_FAULT_DELAY && fault->kind <= PV_FAULT_DOUBLE &&
	       fault->ops != 0 && (fault->ops & ~(uint32_t)OPS) == 0 && fault->every > 0 &&
	       fault->first <= fault->last && (fault->kind != PV_FAULT_FAIL || fault->error > 0);
}

int pv_faults_add(struct pv_faults *f, const struct pv_fault *fault)
{
	int result = -ENOSPC;

	if (!is_valid(fault))
		return -EINVAL;
	pthread_mutex_lock(&f->lock);
	if (f->count < PV_FAULT_RULES) {
		f->last_id = f->last_id % INT32_MAX + 1;
		f->rules[f->count++] =
			(struct pv_fault_state){.id = f->last_id, .fault = *fault};
		arm(f, is_broken(f));
		result = (int)f->last_id;
	}
	pthread_mutex_unlock(&f->lock);
	return result;
}

int pv_faults_remove(struct pv_faults *f, uint32_t id)
{
	uint32_t kept = 0, before;

	pthread_mutex_lock(&f->lock);
	before = f->count;
	for (uint32_t i = 0; i < before; i++)
		if (id != 0 && f->rules[i].id != id)
			f->rules[kept++] = f->rules[i];
	f->count = kept;
	arm(f, is_broken(f));
	atomic_fetch_add(&f->generation, 1);
	pthread_mutex_unlock(&f->lock);
	return id != 0 && kept == before ? -ENOENT : 0;
}

int pv_faults_read(struct pv_faults *f, uint32_t index, struct pv_fault_state *state)
{
	int result = -ENOENT;

	pthread_mutex_lock(&f->lock);
	if (index < f->count) {
		*state = f->rules[index];
		result = 0;
	}
	pthread_mutex_unlock(&f->lock);
	return result;
}

bool pv_faults_has(struct pv_faults *f, uint32_t id)
{
	bool found = false;

	pthread_mutex_lock(&f->lock);
	for (uint32_t i = 0; i < f->count && !found; i++)
		found = f->rules[i].id == id;
	pthread_mutex_unlock(&f->lock);
	return found;
}

static bool is_in_range(const struct pv_fault *fault, const struct pv_fault_subject *s)
{
	uint64_t sectors = s->bytes / SECTOR + (s->bytes % SECTOR != 0);

	if (fault->first == 0 && fault->last == UINT64_MAX)
		return true;
	if ((s->op & (PV_FAULT_READ | PV_FAULT_WRITE)) == 0 || s->sector > fault->last)
		return false;
	return s->sector >= fault->first || fault->first - s->sector < sectors;
}

static bool matches(const struct pv_fault *fault, const struct pv_fault_subject *s)
{
	return (fault->ops & s->op) != 0 && is_in_range(fault, s) &&
	       (fault->kind != PV_FAULT_CORRUPT || fault->offset < s->bytes);
}

/* Whether the rule strikes now. */
static bool count(struct pv_fault_state *rule)
{
	const struct pv_fault *fault = &rule->fault;

	rule->seen++;
	if (is_spent(rule) || rule->seen <= fault->after ||
	    (rule->seen - fault->after) % fault->every != 0)
		return false;
	rule->hits++;
	return true;
}

static void apply(const struct pv_fault_state *rule, struct pv_fault_verdict *verdict)
{
	switch (rule->fault.kind) {
	case PV_FAULT_DELAY:
		verdict->delay_ns += rule->fault.delay_ns;
		break;
	case PV_FAULT_FAIL:
		verdict->error = rule->fault.error;
		break;
	case PV_FAULT_DROP:
		verdict->dropped_by = rule->id;
		break;
	case PV_FAULT_CORRUPT:
		verdict->corrupts = true;
		verdict->offset = rule->fault.offset;
		break;
	case PV_FAULT_DOUBLE:
		verdict->doubled = true;
		break;
	}
}

struct pv_fault_verdict pv_faults_judge(struct pv_faults *f, const struct pv_fault_subject *subject)
{
	struct pv_fault_verdict verdict = {0};
	bool is_over = false;

	pthread_mutex_lock(&f->lock);
	for (uint32_t i = 0; i < f->count; i++) {
		struct pv_fault_state *rule = &f->rules[i];

		if (!matches(&rule->fault, subject) || !count(rule))
			continue;
		apply(rule, &verdict);
		is_over |= is_spent(rule);
	}
	if (is_over)
		arm(f, is_broken(f));
	pthread_mutex_unlock(&f->lock);
	return verdict;
}
