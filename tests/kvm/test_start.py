"""What a start takes, by what no machine's speed changes: system calls, files and KVM's calls.

Of a plain guest, up to its first KVM_RUN, by strace; by a server, from the request. The limits are
what it takes today and a little: who needs more says what for, and raises them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pyvirt
from pyvirt.cli import bundle, launcher

from ..unit.served import children, vcpus, wait_for
from .support import PATIENCE

CALLS, FILES, KVM_CALLS = 660, 37, 33
SERVED_CALLS, SERVED_KVM_CALLS = 165, 5  # beside a look at each file of pyvirt
SITE = Path(sysconfig.get_path("platlib"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a start script with a bundle of what the modules are now."""
    parent = tmp_path_factory.mktemp("parent")
    (parent / "pyvirt").symlink_to(Path(pyvirt.__file__).parent)
    made = [sys.executable, bundle.__file__, str(parent / launcher.BUNDLE)]
    subprocess.run(made, check=True, timeout=4 * PATIENCE)
    script = parent / "start"
    script.write_text(launcher.script(Path(sys.executable), SITE, parent), encoding="utf-8")
    script.chmod(0o755)
    return script


def calls(start: Path, trace: Path, *words: str) -> list[str]:
    """Return the system calls of `pyvirt run WORDS` up to the first KVM_RUN."""
    command = ["strace", "-f", "-qq", "-o", str(trace), str(start), "run", "-accel", "kvm", *words]
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=2 * PATIENCE,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )
    found: list[str] = []
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        call = line.partition(" ")[2].strip()
        if "KVM_RUN" in call:
            return found
        # How often threads wait for one another is chance.
        if re.match(r"\w+\(", call) and not call.startswith("futex("):
            found.append(call)
    raise AssertionError("the guest did not run")


@pytest.mark.any_kvm
def test_a_start_takes_no_more_than_it_did(
    start: Path, kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(4096))
    words = ("-kernel", str(kernel("console")), "-initrd", str(initrd))
    found = calls(start, tmp_path / "trace", *words)
    files = [call for call in found if call.startswith("openat(")]
    assert len(files) <= FILES, "\n".join(files)
    of_kvm = [call for call in found if call.startswith("ioctl(") and "KVM_" in call]
    assert len(of_kvm) <= KVM_CALLS, "\n".join(of_kvm)
    assert len(found) <= CALLS, "\n".join(found)
    beside = (str(Path(pyvirt.__file__).parent), str(start.parent))
    assert [call for call in files if ".py" in call and any(one in call for one in beside)] == []


def request(path: str, words: list[str]) -> None:
    """Have a server start a machine, and see its end."""
    package = os.path.dirname(os.path.abspath(pyvirt.__file__))
    env = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    caller = {"version": pyvirt.__version__, "package": package, "umask": 0o22, "env": env}
    with socket.socket(socket.AF_UNIX) as client, open(os.devnull, "wb") as null:
        client.settimeout(PATIENCE)
        client.connect(path)
        asked = {"run": words, "cwd": "/", "fds": [1, 2], "caller": caller}
        socket.send_fds(client, [json.dumps(asked).encode() + b"\n"], [null.fileno()] * 2)
        said = b""
        while b"status" not in said:
            data = client.recv(4096)
            assert data, said
            said += data


def of_a_request(trace: Path) -> list[str]:
    """Return the calls of a server from a request to its answer, and of the machine from then on.

    Those of its main thread end where that starts the vCPU's, which then alone is on the way.
    """
    text = trace.read_text(encoding="utf-8", errors="replace")
    lines = [(thread, call.strip()) for thread, _, call in map(_parted, text.splitlines())]
    server = next(thread for thread, call in lines if call.startswith("accept4("))
    vcpu = next(thread for thread, call in lines if "KVM_RUN" in call)
    answer = re.search(r'"{\\"pid\\": (\d+)}', text)
    assert answer
    of_server = [call for thread, call in lines if thread == server]
    of_server = of_server[_first(of_server, "accept4(") : _first(of_server, answer[0]) + 1]
    of_main = [call for thread, call in lines if thread == answer[1]]
    of_main = of_main[_first(of_main, "recvmsg(") : _first(of_main, f"parent_tid=[{vcpu}]") + 1]
    of_vcpu = [call for thread, call in lines if thread == vcpu]
    of_vcpu = of_vcpu[: _first(of_vcpu, "KVM_RUN")]
    calls = [*of_server, *of_main, *of_vcpu]
    return [call for call in calls if re.match(r"\w+\(", call) and not call.startswith("futex(")]


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition(" ")


def _first(calls: list[str], what: str) -> int:
    return next(at for at, call in enumerate(calls) if what in call)


@pytest.mark.any_kvm
def test_a_start_by_a_server_takes_no_more_than_it_did(
    start: Path, kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    with TemporaryDirectory() as folder:
        command = [str(start), "serve", f"{folder}/s"]
        # The server is this process's child, and strace is not.
        traced = ["strace", "-D", "-f", "-qq", "-o", str(trace), *command]
        with subprocess.Popen(traced, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as server:
            assert server.stdout is not None
            try:
                assert server.stdout.readline().startswith(b"ready")
                wait_for(lambda: any(map(vcpus, children(server.pid))), "one waits")
                words = ["-accel", "kvm", "-kernel", str(kernel("console"))]
                request(f"{folder}/s", words)
            finally:
                server.terminate()
    wait_for(lambda: b"KVM_RUN" in trace.read_bytes(), "the trace")
    found = of_a_request(trace)
    looks = [call for call in found if call.startswith("newfstatat(") and ".py" in call]
    assert len(looks) >= 100
    of_kvm = [call for call in found if call.startswith("ioctl(") and "KVM_" in call]
    assert len(of_kvm) <= SERVED_KVM_CALLS, "\n".join(of_kvm)
    others = [call for call in found if call not in looks]
    assert len(others) <= SERVED_CALLS, "\n".join(others)
    assert not any(call.startswith("clone(child_stack=NULL") for call in others)
