"""What a run says of the guest's kernel: reports in its console, verdicts, evidence, symbols.

Nothing here starts or drives a VM (vm/ does); the kernel's text is hostile and only read.
"""
