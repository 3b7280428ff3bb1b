/* What a child of the agent does itself, in place of another program. */
#ifndef PYVIRT_AGENT_BUILTIN_H
#define PYVIRT_AGENT_BUILTIN_H

/*
 * `argv` is one of these; anything that fails is told on stderr in a line, with status 1:
 *
 *     get PATH           the file goes to stdout
 *     put PATH MODE      stdin becomes the file PATH, whole or not at all; MODE is octal
 *     exists PATH        status 0: it does, 2: it does not
 *     power HOW          off, reboot or crash; does not return
 *
 * They are run in children because each may block for ever on a file system or a driver.
 */
int builtin_run(char **argv);

/* The same but for `power`, which is refused. */
int builtin_run_on_host(char **argv);

#endif
