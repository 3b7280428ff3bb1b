"""Disk images that are no raw ones, by how they begin."""

from __future__ import annotations

HEAD_BYTES = 128  # that `foreign_format` looks at

# Format, and what is at which offset. A disk that LUKS encrypts is not among them: guests encrypt
# whole disks, and read them as they are.
_SIGNATURES = (
    ("qcow2", 0, b"QFI\xfb"),
    ("QED", 0, b"QED\0"),
    ("VMDK", 0, b"KDMV"),
    ("VMDK", 0, b"COWD"),
    ("VMDK", 0, b"# Disk DescriptorFile"),
    ("VHDX", 0, b"vhdxfile"),
    ("VHD", 0, b"conectix"),
    ("VDI", 64, b"\x7f\x10\xda\xbe"),
    ("Parallels", 0, b"WithoutFreeSpace"),
    ("Parallels", 0, b"WithouFreSpacExt"),
)


def foreign_format(head: bytes) -> str:
    """Return the format of an image whose first bytes are `head`; "" where it may be raw."""
    for name, offset, signature in _SIGNATURES:
        if head.startswith(signature, offset):
            return name
    return ""
