"""Finding a user's virtio device in a file of Python."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .python import PythonDevice, described

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType


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
    loader = SourceFileLoader(name, path)
    module = module_from_spec(ModuleSpec(name, loader, origin=path))
    sys.modules[name] = module
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}; name a file of Python") from None
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
