"""The pytest plugin with real guests: pytest runs on this host, its VMs where they can."""
