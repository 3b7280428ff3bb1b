"""What each kind of thread may ask of the kernel: the lists, and what makes BPF of them."""
