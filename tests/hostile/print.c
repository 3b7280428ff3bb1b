#include "print.h"

#include <stdarg.h>
#include <stdint.h>

#include "io.h"

#define DATA 0x3f8
#define LINE_STATUS 0x3fd
#define CAN_SEND 0x20
#define TRIES 100000

static void put(char letter)
{
	for (int i = 0; i < TRIES && !(in8(LINE_STATUS) & CAN_SEND); i++)
		;
	out8(DATA, (uint8_t)letter);
}

static void put_text(const char *text)
{
	while (*text)
		put(*text++);
}

static void put_number(unsigned value, unsigned base)
{
	char digits[12];
	unsigned at = sizeof(digits) - 1;

	digits[at] = 0;
	do {
		digits[--at] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	put_text(digits + at);
}

void print(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	for (; *format; format++) {
		if (*format != '%') {
			put(*format);
			continue;
		}
		format++;
		if (*format == 's')
			put_text(va_arg(arguments, const char *));
		else
			put_number(va_arg(arguments, unsigned), *format == 'x' ? 16 : 10);
	}
	va_end(arguments);
}
