"""The options that say what guest memory is made of: `-mem-path`, `-object`, and who uses these.

Imported only when one of them is given, or `-numa`.
"""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm import layout
from ...vmm.backing import HUGE_PAGES, MIB, Backing
from ...vmm.memdev import POLICIES, Memdev
from ...vmm.memory import SIZE_MAX, SIZE_MIN
from .members import one_of
from .sizes import memory_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .gather import Parts
    from .numa import Nodes
    from .parsed import Options

_KINDS = ("memory-backend-ram", "memory-backend-file", "memory-backend-memfd")
_SIZES = dict(zip(("2M", "1G"), HUGE_PAGES, strict=True))
_MEMFD = "memory-backend-memfd"


def read(options: Options, parts: Parts) -> None:
    """Store what is asked for; ConfigError."""
    texts = [text for name, text in options.given if name == "numa"]
    nodes: Nodes | None = None
    if texts:
        from .numa import Nodes

        nodes = Nodes(texts, options)
    _check_ways(options, nodes)
    if options.mem_path:
        backing = Backing("-mem-path", path=options.mem_path, shared=options.share)
        options.memdevs = (Memdev("-mem-path", options.memory, backing=backing),)
    options.memdevs = options.memdevs or _objects(options, parts, nodes)
    if nodes is not None:
        options.numa = nodes.finish({memdev.id: memdev.size for memdev in options.memdevs})
    _check_files(options)


def _check_ways(options: Options, nodes: Nodes | None) -> None:
    """Refuse two ways of saying what all memory is made of."""
    name = options.memory_backend
    if name and options.mem_path:
        raise ConfigError(
            f"-machine memory-backend={name}: not with -mem-path {options.mem_path}; "
            "give one of the two"
        )
    if nodes is None:
        return
    if options.mem_path:
        raise ConfigError(
            f"-mem-path {options.mem_path}: not with -numa; give each node memdev=ID, and "
            f"-object memory-backend-file,id=ID,size=SIZE,mem-path={options.mem_path}"
        )
    if name:
        raise ConfigError(f"-machine memory-backend={name}: not with -numa; give memdev= there")


def _objects(options: Options, parts: Parts, nodes: Nodes | None) -> tuple[Memdev, ...]:
    """Return the objects in the order of their users, and settle the size of the memory."""
    users = {}
    if nodes is not None:
        users = {name: f"-numa node,nodeid={node},memdev" for node, name in nodes.memdevs}
    elif options.memory_backend:
        users = {options.memory_backend: "-machine memory-backend"}
    found = {fields["id"]: (kind, fields) for kind in _KINDS for fields in parts.objects.of(kind)}
    for name, (kind, _) in found.items():
        if name not in users:
            raise ConfigError(
                f"-object {kind},id={name}: nothing uses it; "
                f"add -machine memory-backend={name}, or memdev={name} to a -numa node"
            )
    memdevs = []
    for name, user in users.items():
        if name not in found:
            raise ConfigError(
                f"{user}={name}: there is no such object; add -object {_MEMFD},id={name},size=SIZE"
            )
        kind, fields = found[name]
        memdevs.append(_memdev(kind, fields, MIB if nodes is not None else SIZE_MIN))
    _settle(options, memdevs, is_numa=nodes is not None)
    return tuple(memdevs)


def _settle(options: Options, memdevs: list[Memdev], *, is_numa: bool) -> None:
    size = sum(memdev.size for memdev in memdevs)
    is_given = any(name == "m" for name, _ in options.given)
    what = "-numa: the nodes' memory" if is_numa else f"{memdevs[0].option}: its size"
    if is_numa and (not size or (is_given and size != options.memory)):
        raise ConfigError(
            f"{what} adds up to {size // MIB} MiB, and -m says {options.memory // MIB}; "
            "give each node memdev=ID, of sizes that add up to that"
        )
    if is_given and size != options.memory:
        raise ConfigError(
            f"{what} is {size // MIB} MiB, and -m says {options.memory // MIB}; "
            "give the same, or leave -m out"
        )
    if not SIZE_MIN <= size <= SIZE_MAX:
        raise ConfigError(
            f"{what} adds up to {size // MIB} MiB, not between 128M and 512G; give other sizes"
        )
    options.memory = size


def _memdev(kind: str, fields: dict[str, Any], least: int) -> Memdev:
    option = f"-object {kind},id={fields['id']}"
    if "size" not in fields:
        raise ConfigError(f"{option}: has no size; give size=SIZE")
    backing = _backing(option, kind, fields)
    policy, nodes = fields.get("policy", "default"), fields.get("host-nodes", ())
    one_of(f"{option},policy", policy, tuple(POLICIES))
    if policy == "default" and nodes:
        policies = ", ".join(name for name in POLICIES if name != policy)
        raise ConfigError(f"{option},host-nodes: goes with a policy; give one of {policies}")
    if policy != "default" and not nodes:
        raise ConfigError(f"{option},policy={policy}: of no nodes; give host-nodes=N")
    return Memdev(
        option,
        memory_size(f"{option},size", fields["size"], least),
        name=fields["id"],
        backing=backing,
        shared=fields.get("shared", kind == _MEMFD),
        prealloc=fields.get("prealloc", False),
        policy=policy,
        host_nodes=nodes,
    )


def _backing(option: str, kind: str, fields: dict[str, Any]) -> Backing | None:
    """Return what a kind is made of; None for anonymous memory."""
    if kind == "memory-backend-file":
        if "path" not in fields:
            raise ConfigError(f"{option}: has no mem-path; give mem-path=FOLDER|FILE")
        return Backing(option, path=fields["path"], shared=fields.get("shared", False))
    if kind != _MEMFD:
        for key in ("hugetlb", "hugetlbsize", "seal"):
            if key in fields:
                raise ConfigError(f"{option},{key}: is of {_MEMFD}; use that")
        return None
    huge = fields.get("hugetlb", False)
    if "hugetlbsize" in fields and not huge:
        raise ConfigError(f"{option},hugetlbsize: goes with hugetlb=on; give both")
    page = _SIZES[fields.get("hugetlbsize", "2M")] if huge else 0
    return Backing(
        option,
        huge_page=page,
        shared=fields.get("shared", True),
        seal=fields.get("seal", True),
    )


def _check_files(options: Options) -> None:
    """Refuse more pieces of memory than those who map them take."""
    sharers = [one for one in options.devices if getattr(one, "needs_shared_memory", False)]
    if not sharers:
        return
    from ...devices.vhost_user.protocol import REGIONS_MAX

    ends = [0]
    for memdev in options.memdevs:
        ends.append(ends[-1] + memdev.size)
    pieces = len(options.memdevs) + (
        options.memory > layout.GAP_START and layout.GAP_START not in ends
    )
    if pieces > REGIONS_MAX:
        raise ConfigError(
            f"-numa: the memory has {pieces} pieces, and what serves the device {sharers[0].id} "
            f"maps {REGIONS_MAX} at most; give fewer nodes memory"
        )
