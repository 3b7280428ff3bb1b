#include "rule.h"

#include <stddef.h>

#include "arena.h"
#include "print.h"

static const char *const words[ANSWERS] = {
	[SERVED] = "served",
	[DONE] = "used, nothing written",
	[ERROR] = "says no",
	[SILENCE] = "silence",
	[BROKEN] = "NEEDS_RESET",
	[REFUSED] = "refused",
};

static enum answer answer_to(const struct rule *rule, struct play *play)
{
	if (rule->with & ~play->device->offered)
		return skipped(play, "the device does not offer the feature");
	if (!play_start(play, rule->with, rule->without))
		return WRONG;
	if (rule->play)
		return rule->play(play);
	play_lay_out(play);
	rule->damage(play);
	return play_submit(play);
}

/* A reset brings every device back; NULL, or what is wrong. */
static const char *revive(struct play *play)
{
	enum answer answer;

	if (!play_start(play, 0, 0))
		return play->why;
	answer = play_valid(play);
	if (answer == WRONG)
		return play->why;
	if (!(WORKS & MAY(answer)))
		return "does not serve after a reset";
	return arena_damage();
}

static enum verdict tell(const struct rule *rule, const struct device *device, unsigned number,
                         const char *fault, const char *note)
{
	print("%sok %u %s%u %s%s%s%s\n", fault ? "not " : "", number, device->kind->name,
	      device->number, rule->name, fault ? " # " : note ? " # " : "", fault ? fault : "",
	      fault || !note ? "" : note);
	return fault ? FAILS : PASSES;
}

enum verdict rule_play(const struct rule *rule, struct device *device, unsigned number)
{
	struct play play = {.device = device};
	const char *fault = NULL, *after;
	enum answer answer;

	if (device->is_lost)
		return tell(rule, device, number, "the device was lost before", NULL);
	answer = answer_to(rule, &play);
	if (answer == SKIPPED) {
		print("ok %u %s%u %s # SKIP %s\n", number, device->kind->name, device->number,
		      rule->name, play.why);
		return IS_SKIPPED;
	}
	if (answer == WRONG)
		fault = play.why;
	else if (!(rule->may & MAY(answer)))
		fault = words[answer];
	if (!fault)
		fault = arena_damage();
	after = revive(&play);
	device->is_lost = after != NULL || !device_reset(device);
	return tell(rule, device, number, after ? after : fault, words[answer]);
}
