#include "find.h"

#include <stddef.h>

#include "kind.h"

static const struct {
	uintptr_t base;
	uint32_t step;
	unsigned count;
} windows[] = {
	{0xd0000000, 0x1000, 32}, /* pyvirt */
	{0xfeb00000, 0x200, 24},  /* QEMU's microvm */
};

/* What follows `name` in the text, or NULL. */
static const char *after(const char *text, const char *name)
{
	for (; *text; text++) {
		unsigned i = 0;

		while (name[i] && text[i] == name[i])
			i++;
		if (!name[i])
			return text + i;
	}
	return NULL;
}

static unsigned digit(char letter)
{
	if (letter >= '0' && letter <= '9')
		return (unsigned)(letter - '0');
	if (letter >= 'a' && letter <= 'f')
		return (unsigned)(letter - 'a' + 10);
	return 16;
}

/* With the K that sizes have. */
static unsigned number(const char *text)
{
	unsigned value = 0, base = 10;

	if (text[0] == '0' && text[1] == 'x') {
		base = 16;
		text += 2;
	}
	for (; digit(*text) < base; text++)
		value = value * base + digit(*text);
	return *text == 'K' ? value * 1024 : value;
}

static void keep(uintptr_t base, uint32_t window, struct device *devices, unsigned *count)
{
	struct device *device = &devices[*count];

	*device = (struct device){.base = base, .window = window};
	if (*count == DEVICES_MAX || get(device, MAGIC_VALUE) != VIRTIO_MAGIC)
		return;
	device->id = get(device, DEVICE_ID);
	device->kind = kind_find(device->id);
	if (!device->kind)
		return;
	for (unsigned i = 0; i < *count; i++)
		device->number += devices[i].id == device->id;
	(*count)++;
}

unsigned find_devices(const char *words, struct device *devices)
{
	const char *text = words;
	unsigned count = 0;
	int is_told = 0;

	while ((text = after(text, "virtio_mmio.device=")) != NULL) {
		const char *base = after(text, "@");

		is_told = 1;
		if (base)
			keep(number(base), number(text), devices, &count);
	}
	for (unsigned w = 0; !is_told && w < sizeof(windows) / sizeof(*windows); w++)
		for (unsigned i = 0; i < windows[w].count; i++)
			keep(windows[w].base + i * windows[w].step, windows[w].step, devices,
			     &count);
	return count;
}

unsigned find_number(const char *words, const char *name, unsigned otherwise)
{
	const char *text = after(words, name);

	return text ? number(text) : otherwise;
}

struct ports find_ports(const char *words, const char *name)
{
	const char *text = after(words, name);
	const char *count = text ? after(text, "+") : NULL;

	if (!count)
		return (struct ports){0};
	return (struct ports){(uint16_t)number(text), (uint16_t)number(count)};
}

bool find_word(const char *words, const char *name)
{
	return after(words, name) != NULL;
}

bool find_in_list(const char *words, const char *name, const char *word)
{
	const char *text = after(words, name);

	while (text && *text && *text != ' ') {
		unsigned i = 0;

		while (word[i] && text[i] == word[i])
			i++;
		if (!word[i] && (text[i] == ',' || text[i] == ' ' || !text[i]))
			return true;
		while (*text && *text != ' ' && *text++ != ',')
			;
	}
	return false;
}
