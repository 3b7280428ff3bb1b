"""Processes that start machines as forks of themselves: what is said to them, and what they do."""
