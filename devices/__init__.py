"""What a guest sees: the devices and their host back ends. Knows nothing of `vmm`."""
