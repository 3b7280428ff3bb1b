"""Stock kernels as guests."""
