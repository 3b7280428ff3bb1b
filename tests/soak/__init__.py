"""VMs that come and go for long, and what the host has of it: tests/kvm/test_soak.py, make soak."""
