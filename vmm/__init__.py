"""The machine: memory, vCPUs, interrupts, boot and its life. Uses `devices`, never `cli`."""
