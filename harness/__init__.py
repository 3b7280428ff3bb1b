"""For people who test guest kernels: guest images and the nested lab. `pyvirt run` imports nothing of it."""
