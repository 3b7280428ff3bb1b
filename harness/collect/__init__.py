"""Test suites that others wrote for kernels and for KVM, collected as pytest items."""
