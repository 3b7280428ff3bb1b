"""For people who test guest kernels: guest images and the nested lab.

Nothing here is imported when `pyvirt run` finds a KVM that can run the guest.
"""
