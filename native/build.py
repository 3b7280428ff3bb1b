"""Build the extension `pyvirt.native._native` from the C files of these folders (cffi, API mode).

What Python sees of the C code is what its headers declare: they hold plain declarations only,
so that the compiler and cffi read the same text. Structures of the kernel and the C library are
named in kvm.cdef and libc.cdef, because cffi cannot read their headers; the compiler checks every
one against them.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
PROGRAMS = ("tests", "fuzz", "proofs")  # folders of what is no part of the extension


def files(suffix: str) -> list[str]:
    """Return the extension's files with this suffix, relative to this folder."""
    found = (path.relative_to(HERE) for path in HERE.rglob(f"*{suffix}"))
    return sorted(
        str(path)
        for path in found
        if path.parts[0] not in PROGRAMS and not path.name.startswith("_native")
    )


HEADERS_ALL = files(".h")
HEADERS = [name for name in HEADERS_ALL if not name.endswith("internal.h")]
SOURCES = files(".c")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-Wstrict-prototypes")
FLAGS = ("-std=c11", "-O2", "-g", "-fvisibility=hidden", "-pthread", "-D_GNU_SOURCE")
# The extension is optimized as a whole: what one file asks of another for each request is inlined.
WHOLE = ("-flto=auto",)
LIBRARIES = ("uring",)

_CONSTANT = re.compile(r"#define\s+(PV_\w+)\s+(0x[0-9a-fA-F]+|\d+)[uUlL]*\s*(/\*.*)?$")


def declarations(header: Path) -> str:
    """Return the text of a header as a cdef: no preprocessor lines but numeric constants."""
    lines: list[str] = []
    for line in header.read_text(encoding="utf-8").splitlines():
        constant = _CONSTANT.match(line)
        if constant:
            lines.append(f"#define {constant[1]} {constant[2]}")
        elif not line.startswith("#"):
            lines.append(line)
    return "\n".join(lines)


def make() -> FFI:
    """Describe the extension; setuptools compiles it."""
    ffi = FFI()
    for name in ("kvm.cdef", "libc.cdef"):
        ffi.cdef((HERE / name).read_text(encoding="utf-8"))
    for name in HEADERS:
        ffi.cdef(declarations(HERE / name))
    includes = "".join(f'#include "{name}"\n' for name in HEADERS)
    ffi.set_source(
        "pyvirt.native._native",
        f"#include <linux/kvm.h>\n#include <sys/mman.h>\n{includes}",
        sources=[f"native/{name}" for name in SOURCES],
        include_dirs=["native"],
        extra_compile_args=[*FLAGS, *WHOLE],
        extra_link_args=list(WHOLE),
        libraries=list(LIBRARIES),
        py_limited_api=True,
    )
    return ffi


ffibuilder = make()
