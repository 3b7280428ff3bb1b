"""The commands by subject; each file has handlers and, at its end, their rows of the table."""
