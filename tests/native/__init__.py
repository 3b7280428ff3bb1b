"""The C code by itself, under sanitizers."""
