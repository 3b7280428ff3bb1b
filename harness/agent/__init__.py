"""The agent that runs commands in a guest under test, and its client on the host."""
