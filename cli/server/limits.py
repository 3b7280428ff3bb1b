"""What a server and its clients agree on; light, for a machine's start waits for its client."""

LINE_MAX = 1 << 18  # bytes of the first line; an environment is in it
STREAMS_MAX = 64  # descriptors of one monitor, and its highest
