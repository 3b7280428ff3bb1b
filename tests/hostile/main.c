/* Plays every rule against every device, and ends the machine. */
#include <stddef.h>

#include "boot.h"
#include "find.h"
#include "io.h"
#include "machine.h"
#include "print.h"
#include "rule.h"

static const struct rule *const tables[] = {
	register_rules, access_rules, queue_rules, ring_rules, chain_rules,
	indirect_rules, life_rules,   block_rules, net_rules,  other_rules,
};

static struct device devices[DEVICES_MAX + 1];
static unsigned device_count;

struct machine machine;

static const char *words; /* the command line */
static struct ports ports;

static bool is_asked_for(const struct rule *rule)
{
	if (find_word(words, "hostile.only="))
		return find_in_list(words, "hostile.only=", rule->name);
	return !find_in_list(words, "hostile.skip=", rule->name);
}

static bool concerns(const struct rule *rule, const struct device *device)
{
	return (rule->kinds == ANY_KIND || (rule->kinds & KIND(device->id)) != 0) &&
	       is_asked_for(rule);
}

/* Call `each` for every rule of every device; without it, count them. */
static unsigned walk(void (*each)(const struct rule *, struct device *, unsigned))
{
	unsigned number = 0;

	for (unsigned d = 0; d < device_count; d++)
		for (unsigned t = 0; t < sizeof(tables) / sizeof(*tables); t++)
			for (const struct rule *rule = tables[t]; rule->name; rule++) {
				if (!concerns(rule, &devices[d]))
					continue;
				number++;
				if (each)
					each(rule, &devices[d], number);
			}
	return number;
}

static unsigned totals[3];

static void play_one(const struct rule *rule, struct device *device, unsigned number)
{
	totals[rule_play(rule, device, number)]++;
	ports_disturb(ports);
}

/* Documented in docs/hostile.md: debug exit, keyboard controller's reset, triple fault. */
static _Noreturn void end(unsigned status)
{
	static const struct __attribute__((packed)) {
		uint16_t limit;
		uint32_t base;
	} no_table;

	out8(0xf4, (uint8_t)status);
	out8(0x64, 0xfe);
	__asm__ volatile("lidt %0; int3" : : "m"(no_table));
	for (;;)
		;
}

static void find_all(void)
{
	device_count = find_devices(words, devices);
	machine.devices = devices;
	machine.device_count = device_count;
}

static void play_all(void)
{
	for (unsigned d = 0; d < device_count; d++) {
		devices[d].offered = device_reset(&devices[d]) ? device_offer(&devices[d]) : 0;
		print("# %s%u at %x\n", devices[d].kind->name, devices[d].number,
		      (unsigned)devices[d].base);
	}
	ports_disturb(ports);
	walk(play_one);
}

void hostile_main(unsigned protocol, const void *info);

void hostile_main(unsigned protocol, const void *info)
{
	struct boot boot = boot_read(protocol, info);
	bool is_endless;

	words = boot.words;
	machine.memory_end = boot.memory_end;
	machine.rounds = find_number(words, "hostile.rounds=", 100);
	ports = find_ports(words, "hostile.ports=");
	is_endless = find_word(words, "hostile.endless");
	find_all();
	print("KTAP version 1\n1..%u\n", is_endless ? 0 : walk(NULL));
	do {
		play_all();
		find_all();
	} while (is_endless);
	print("# totals: pass:%u fail:%u skip:%u\n", totals[PASSES], totals[FAILS],
	      totals[IS_SKIPPED]);
	end(totals[FAILS] ? 1 : 0);
}
