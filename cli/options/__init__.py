"""The options of `pyvirt run`: a table of all, and a reader for each kind, imported when given."""
