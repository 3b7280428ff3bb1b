"""Guest images: kernels and initramfs archives, made on first use and cached by content."""
