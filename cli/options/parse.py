"""The command line of `pyvirt run`: its words by the table, and what they ask for together.

Each option may be written with one dash or two; its value follows as the next word or after `=`
(only so when it begins with a dash).
"""

from __future__ import annotations

import os

from ...devices.chardev import NULL, STDIO, ChardevConfig
from ...errors import ConfigError
from ...vmm.config import ACPI_WATCHDOG, DEMAND
from . import members
from .parsed import SANDBOXES, Options
from .table import BY_NAME, SERIAL_WORDS, later

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .option import Option

# Options of other monitors that tools pass by habit and that ask for nothing here, and those of
# them that have a value.
_IGNORED = (
    *("nodefaults", "no-user-config", "nographic", "usb"),
    *("omit_vm_memory", "enable-kvm"),
)
_IGNORED_VALUED = ("overcommit", "msg", "boot", "realtime", "display", "vga", "global", "trace")
_HELP = ("h", "help")
_SANDBOX = "PYVIRT_SANDBOX"  # an environment's, for what is given no -sandbox
_ALIASES = {"freeze": "S"}


def _take_value(option: Option, argv: list[str], at: int) -> tuple[str, int]:
    """Return the value of the option whose name is at argv[at - 1], and where to go on."""
    if not option.value or option.value.startswith("[="):
        return "", at
    present = at < len(argv) and not argv[at].startswith("-")
    if option.name == "append" and present:
        end = at + 1
        while end < len(argv) and not argv[end].startswith("-"):
            end += 1
        return " ".join(argv[at:end]), end
    if present:
        return argv[at], at + 1
    if option.is_bare:
        return "", at
    raise ConfigError(
        f"-{option.name}: needs a value, {option.value}; one that begins with - goes after ="
    )


def parse(argv: list[str]) -> Options:
    """Return what the words after `pyvirt run` ask for; ConfigError names the one at fault."""
    options = Options()
    options.sandbox = _usual_sandbox(options.sandbox)
    given = _read(argv, options)
    for option, text in given:
        if option.name == "config":
            from .config_file import complete

            given = complete([one for one in given if one[0] is not option], text, BY_NAME)
    for option, text in given:
        members.placed(text, option.store, options)
        options.given.append((option.name, text))
    if options.rtc is not None or options.rtc_switch == "on":
        from .timed import place_rtc

        place_rtc(options)
    _check_together(options)
    other: ChardevConfig | None = None
    serial = dict(options.given).get("serial")
    needs_more = any(one.store is later for one, _ in given) or options.mem_path or options.root
    if serial not in {None, *SERIAL_WORDS} or needs_more or options.memory_backend:
        other = _take_devices(options)
    _take_terminal(options, other, is_given=serial is not None)
    if options.slots == DEMAND and options.discovery == "cmdline":
        raise ConfigError(
            "-machine slots=demand: not with discovery=cmdline, as the guest is told of its "
            "devices by ACPI; drop one of them"
        )
    if options.testdev:
        _leave_sandbox(options)
    if options.sandbox_paths and options.sandbox == "off":
        raise ConfigError(
            f"-sandbox-path {options.sandbox_paths[0][0]}: only in a sandbox; give -sandbox on"
        )
    if options.watchdog == ACPI_WATCHDOG and options.discovery == "cmdline":
        raise ConfigError(
            f"-device {ACPI_WATCHDOG}: not with -machine discovery=cmdline, which has no ACPI; "
            "give -device ib700"
        )
    return options


def _usual_sandbox(default: str) -> str:
    """Return what -sandbox is where it is not given; ConfigError."""
    if _SANDBOX not in os.environ:
        return default
    return members.one_of(f"{_SANDBOX}=", os.environ[_SANDBOX], SANDBOXES)


def _leave_sandbox(options: Options) -> None:
    """Have none, as a device needs that; ConfigError when one is asked for."""
    if options.sandbox != "off" and any(name == "sandbox" for name, _ in options.given):
        raise ConfigError(
            "-device pc-testdev: not in a sandbox, which lets nobody change how memory is mapped "
            "as this device does; give -sandbox off"
        )
    options.sandbox = "off"


def _read(argv: list[str], options: Options) -> list[tuple[Option, str]]:
    """Return each option with its value, "" for none; ConfigError."""
    given: list[tuple[Option, str]] = []
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if not word.startswith("-"):
            raise ConfigError(f"{word}: not an option; pyvirt run -help lists them")
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        name = _ALIASES.get(name, name)
        if name in _HELP:
            options.help = True
            continue
        if name in _IGNORED or (name in _IGNORED_VALUED and equals):
            continue
        if name in _IGNORED_VALUED:
            at += at < len(argv) and not argv[at].startswith("-")
            continue
        option = BY_NAME.get(name)
        if option is None:
            raise ConfigError(f"{word}: no such option; pyvirt run -help lists them")
        if not option.repeats and any(one is option for one, _ in given):
            raise ConfigError(f"-{name}: given twice; give it once")
        if equals and not option.value:
            raise ConfigError(f"-{name}: takes no value; leave {value} out")
        if not equals:
            value, at = _take_value(option, argv, at)
        given.append((option, value))
    return given


def _take_devices(options: Options) -> ChardevConfig | None:
    """Read what is read together; return the chardev on stdin and stdout, if there is one."""
    from .gather import Gathered

    found = Gathered(options.given)
    options.disks, options.iothreads, options.nics = found.disks, found.iothreads, found.nics
    options.devices, options.chardevs = found.devices, found.chardevs
    options.monitors, options.testdev = found.monitors, found.testdev
    options.watchdog = found.watchdog
    options.shares = found.shares
    options.serial = found.serial or options.serial
    has_numa = any(name == "numa" for name, _ in options.given)
    if options.mem_path or options.memory_backend or found.parts.objects.has_memory or has_numa:
        from .memory import read

        read(options, found.parts)
    return found.terminal


def _take_terminal(options: Options, other: ChardevConfig | None, *, is_given: bool) -> None:
    """Say who has stdin and stdout: the serial port, which leaves them where it is not given.

    ConfigError when they are about to go away.
    """
    if not is_given and (other or options.daemonize):
        options.serial = ChardevConfig(options.serial.id, NULL, option="-serial none")
    options.terminal = options.serial if options.serial.kind == STDIO else other
    if options.daemonize and options.terminal:
        raise ConfigError(
            f"{options.terminal.option}: not with -daemonize, which leaves stdin and stdout; "
            "give it a file, a socket or null"
        )


def _check_together(options: Options) -> None:
    if options.initrd and not options.kernel and not options.root:
        raise ConfigError(f"-initrd {options.initrd}: needs a -kernel to go with it")
    if options.command is not None and not options.root:
        raise ConfigError(f"-exec {options.command}: only with -root; add -root /")
