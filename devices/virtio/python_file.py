"""Finding a user's virtio device in a file of Python."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

from ... import files
from ...errors import ConfigError
from .python import PythonDevice, described

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType


_SOURCE_MAX = 16 << 20  # bytes


class _Loader(SourceFileLoader):
    """Loads a module from what was read of its file already."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_data(self, path: str) -> bytes:
        """Return the source; bytecode is read as ever."""
        return self._source if path == self.path else super().get_data(path)


def load(path: str, name: str, class_name: str, options: Mapping[str, str]) -> PythonDevice:
    """Make the device of a class in the file; ConfigError.

    Without `class_name` there is one class in it that can be meant. `name` is how messages call the
    device, `options` are its constructor's keywords.
    """
    where = f"-device python,file={path}"
    module = _run(where, path)
    made = _class(where, module, class_name)
    try:
        device: PythonDevice = made(**options)
        device.prepare(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's code may raise anything)
        raise ConfigError(f"{where}: {described(error)}; mend it there") from None
    return device


def _run(where: str, path: str) -> ModuleType:
    # Modules beside it can be imported; nothing of ours is hidden by them.
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.append(folder)
    name = f"pyvirt_device_{len(sys.modules)}"
    try:
        loader = _Loader(name, path, files.read(path, _SOURCE_MAX))
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}; name a file of Python") from None
    module = module_from_spec(ModuleSpec(name, loader, origin=path))
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        at = f"{os.path.basename(error.filename or path)}:{error.lineno}"
        raise ConfigError(f"{where}: SyntaxError: {error.msg} ({at}); mend it there") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's code may raise anything)
        raise ConfigError(f"{where}: {described(error)}; mend it there") from None
    return module


def _class(where: str, module: ModuleType, name: str) -> Any:
    there = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, PythonDevice)
        and value.__module__ == module.__name__
    }
    if name:
        if name not in there:
            among = f"there are {', '.join(there)}" if there else "there is none"
            raise ConfigError(f"{where},class={name}: no such class of a PythonDevice; {among}")
        return there[name]
    if len(there) != 1:
        found = f"has several ({', '.join(there)}); give class=NAME" if there else "has none"
        raise ConfigError(f"{where}: {found}: a class derived from PythonDevice is needed")
    return next(iter(there.values()))
