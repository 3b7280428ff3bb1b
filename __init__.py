"""pyvirt: a KVM microVM monitor, Python for control and plain C for the data path.

The checkout is the package: ``vmm/`` is ``pyvirt.vmm``. Imports inside run one way:
cli, harness, qmp, vmm, devices, native; ``errors`` serves them all.
"""

__version__ = "0.1.0"
