"""What `pyvirt jail` is made of: a folder, namespaces, a tree of files, a cgroup."""
