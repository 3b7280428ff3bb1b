"""What a command line of `pyvirt run` asks for."""

from __future__ import annotations

from ...devices.chardev import STDIO, ChardevConfig
from ...vmm.config import PREPARED
from ...vmm.end import Actions
from ...vmm.memory import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...devices.iothread import IoThread
    from ...devices.nic import NicConfig
    from ...devices.rtc import RtcConfig
    from ...devices.virtio.block import BlockConfig
    from ...devices.virtio.device import DeviceConfig
    from ...qmp.listener import ListenerConfig
    from ...vmm.cpu_model import CpuModel
    from ...vmm.memdev import Memdev
    from ...vmm.memory import Content
    from ...vmm.numa import Numa
    from ...vmm.topology import Topology


ACCELERATORS = ("auto", "kvm", "lab")
SANDBOXES = ("on", "off", "log")


class IncomingConfig:
    """Where the snapshot is, and whether its memory is `mapped`; None: where that can be."""

    __slots__ = ("mapped", "path")

    def __init__(self, path: str, *, mapped: bool | None = None) -> None:
        self.path = path
        self.mapped = mapped


class Options:
    """What is asked for, checked as far as words can be."""

    __slots__ = (
        "accel",
        "actions",
        "append",
        "chardevs",
        "command",
        "content",
        "cpu",
        "daemonize",
        "devices",
        "discovery",
        "disks",
        "dump_guest_core",
        "freeze",
        "given",
        "help",
        "hotplug",
        "incoming",
        "initrd",
        "iothreads",
        "kernel",
        "log",
        "mem_path",
        "memdevs",
        "memory",
        "memory_backend",
        "monitors",
        "name",
        "nics",
        "numa",
        "pidfile",
        "pit",
        "places",
        "prealloc",
        "print_config",
        "root",
        "rtc",
        "rtc_switch",
        "sandbox",
        "serial",
        "share",
        "shares",
        "slots",
        "smp",
        "stats",
        "terminal",
        "testdev",
        "timeline",
        "topology",
        "uuid",
        "watchdog",
    )

    def __init__(self) -> None:
        self.accel = "auto"
        self.actions = Actions()
        self.append: str | None = None
        self.chardevs: tuple[ChardevConfig, ...] = ()  # of devices
        self.command: str | None = None  # in place of a shell
        self.content: Content | None = None  # of memory, from the start on
        self.cpu: CpuModel | None = None
        self.daemonize = False
        self.devices: tuple[DeviceConfig, ...] = ()  # neither disks nor NICs
        self.discovery = "auto"
        self.disks: tuple[BlockConfig, ...] = ()
        self.freeze = False
        self.given: list[tuple[str, str]] = []  # name and value, as written
        self.help = False
        self.hotplug: bool | None = None  # slots to plug into; None: where there is a monitor
        self.incoming: IncomingConfig | None = None
        self.initrd = ""
        self.iothreads: tuple[IoThread, ...] = ()
        self.kernel = ""
        self.log: str | None = None
        self.mem_path = ""
        self.memdevs: tuple[Memdev, ...] = ()  # what memory is made of, where it is said
        self.memory = 256 * MIB
        self.memory_backend = ""
        self.monitors: tuple[ListenerConfig, ...] = ()
        self.name = ""
        self.nics: tuple[NicConfig, ...] = ()
        self.numa: Numa | None = None
        self.pidfile = ""
        self.pit = True
        self.prealloc = False
        self.print_config: str | None = None
        self.root = ""
        self.rtc: RtcConfig | None = None
        self.rtc_switch = "auto"
        self.sandbox = "on"  # one of SANDBOXES
        # What the guest's ttyS0 is on. Where none is given: stdin and stdout, unless another has
        # these, or they are left.
        self.serial = ChardevConfig("serial0", STDIO, option="-serial stdio")
        self.share = False
        self.places: tuple[int, ...] = ()  # slots of a guest that is restored
        self.slots = PREPARED  # one of vmm.config.SLOTS
        self.shares: tuple[str, ...] = ()  # the tags of folders of the host
        self.dump_guest_core = False
        self.smp = 1
        self.stats = False
        self.terminal: ChardevConfig | None = self.serial  # what is on stdin and stdout
        self.testdev = False
        self.timeline: str | None = None
        self.topology: Topology | None = None
        self.uuid = ""
        self.watchdog = ""

    @property
    def sandbox_paths(self) -> list[tuple[str, bool]]:
        """Return what -sandbox-path names, and whether that is only read."""
        given = [text for name, text in self.given if name == "sandbox-path"]
        return [(text.partition(",")[0], "," in text) for text in given]
