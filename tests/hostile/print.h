/* Text on the serial port. */
#pragma once

/* Knows %s, %u (unsigned), %x (unsigned) and no more. */
__attribute__((format(printf, 1, 2))) void print(const char *format, ...);
