"""What a machine is made from; parsed once at the edge, never changed after."""

from __future__ import annotations

from .end import Actions
from .topology import Topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..devices.nic import NicConfig
    from ..devices.rtc import RtcConfig
    from ..devices.virtio.block import BlockConfig
    from ..devices.virtio.device import DeviceConfig
    from .cpu_model import CpuModel
    from .memdev import Memdev
    from .memory import Content
    from .numa import Numa

VCPUS_MAX = 254
DISCOVERIES = ("auto", "acpi", "cmdline")
IB700, ACPI_WATCHDOG = "ib700", "acpi-watchdog"
PREPARED, DEMAND = "prepared", "demand"
SLOTS = (PREPARED, DEMAND)
WATCHDOGS = (IB700, ACPI_WATCHDOG)


class MachineConfig:
    """One machine. Every value has been checked by who made it (cli/options)."""

    __slots__ = (
        "actions",
        "cmdline",
        "content",
        "cpu",
        "devices",
        "discovery",
        "disks",
        "dump_guest_core",
        "frozen",
        "hotplug",
        "initrd",
        "kernel",
        "memdevs",
        "memory",
        "name",
        "nics",
        "numa",
        "on_demand",
        "pit",
        "places",
        "prealloc",
        "read_exits",
        "rtc",
        "share",
        "testdev",
        "topology",
        "uuid",
        "vcpus",
        "watchdog",
    )

    def __init__(
        self,
        kernel: str,
        *,
        initrd: str = "",
        cmdline: str = "",
        vcpus: int = 1,
        memory: int = 256 << 20,
        name: str = "",
        uuid: str = "",
        discovery: str = "auto",
        share: bool = False,
        dump_guest_core: bool = False,
        frozen: bool = False,
        disks: tuple[BlockConfig, ...] = (),
        nics: tuple[NicConfig, ...] = (),
        devices: tuple[DeviceConfig, ...] = (),
        hotplug: bool = False,
        on_demand: bool = False,
        places: tuple[int, ...] = (),
        read_exits: bool = False,
        cpu: CpuModel | None = None,
        pit: bool = True,
        testdev: bool = False,
        actions: Actions | None = None,
        topology: Topology | None = None,
        memdevs: tuple[Memdev, ...] = (),
        content: Content | None = None,
        prealloc: bool = False,
        numa: Numa | None = None,
        rtc: RtcConfig | None = None,
        watchdog: str = "",
    ) -> None:
        """`memory` is in bytes, 128 MiB to 512 GiB; `vcpus` 1 to 254; `frozen` starts paused.

        `uuid` is for who asks the monitor; the guest does not see it.
        `discovery` says how the guest finds its devices: `acpi`, `cmdline` (with an MP table
        and no ACPI), or `auto`, which is ACPI unless `cmdline` says acpi=off. `share` makes guest
        memory a memfd, as do devices that need it, and
        `dump_guest_core` a part of the monitor's own core dumps. `disks` are in the order of their
        slots, and so are `nics`, after them; then come the `devices` of other kinds. `hotplug` adds
        the slots that are empty, for what comes while the guest runs; with `on_demand`, which takes
        ACPI, each comes with its device instead, and `places` are the slots of all that a restored
        machine has at its start. `read_exits` keeps
        KVM's read-only memory from the virtio devices' registers, as on a KVM that has none. `cpu`
        is None for the host's processor as it is, `pit` the timer of old, and `testdev` adds the
        device of kvm-unit-tests. `actions` is None for a guest that ends its run itself, and
        `topology`, which has the same number of vCPUs, for one socket of single-threaded cores.
        `memdevs` are what the memory is made of, from address 0 on; without any it is anonymous,
        or a memfd with `share`. `content` is what is in anonymous memory from the start on, None
        for zeroes. `prealloc` has the host provide all of it before the guest starts.
        `numa` is None for one node; it takes ACPI to tell of more.
        `rtc` is the real-time clock, `watchdog` one of WATCHDOGS; there is none otherwise.
        """
        self.kernel = kernel
        self.initrd = initrd
        self.cmdline = cmdline
        self.vcpus = vcpus
        self.memory = memory
        self.name = name
        self.uuid = uuid
        if discovery == "auto":
            discovery = "cmdline" if "acpi=off" in cmdline.split() else "acpi"
        self.discovery = discovery
        # What serves a device in another process has to see guest memory.
        self.share = share or any(getattr(one, "needs_shared_memory", False) for one in devices)
        self.dump_guest_core = dump_guest_core
        self.frozen = frozen
        self.disks = disks
        self.nics = nics
        self.hotplug = hotplug
        self.places = places
        self.on_demand = on_demand and hotplug and discovery == "acpi"
        self.read_exits = read_exits
        self.cpu = cpu
        self.devices = devices
        self.pit = pit
        self.testdev = testdev
        self.actions = actions or Actions()
        self.topology = topology or Topology(vcpus)
        self.memdevs = memdevs
        self.content = content
        self.prealloc = prealloc
        self.numa = numa
        self.rtc = rtc
        self.watchdog = watchdog
