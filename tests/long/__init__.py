"""Long runs, by command; see __main__.py."""
