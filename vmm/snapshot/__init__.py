"""A whole machine as files: what it is saved from and restored to; only for who asks for it."""
