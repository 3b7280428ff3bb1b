"""Time `pyvirt run` from exec to the first KVM_RUN on this host's own KVM.

    make bench-startup                or: .venv/bin/python benches/startup.py [RUNS]

The guest is the micro kernel with its initramfs, 1 vCPU and 256 MiB. What it does after the
first KVM_RUN does not matter here, so any KVM will do: it is ended by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pyvirt.harness.guest import initramfs, kernel

RUNS = 20
WARM_UP = 2
SETTLE_SECONDS = 0.3
END_SECONDS = 10
PYVIRT = Path(sys.prefix, "bin", "pyvirt")
STAGES = ("modules imported", "VM ready", "kernel loaded", "first KVM_RUN")
RESULTS = Path(__file__).parent / "results"


def run(command: list[str]) -> dict[str, float]:
    """Start pyvirt once; return the milliseconds since exec of each stage."""
    environment = {**os.environ, "PYVIRT_EXEC_NS": str(time.monotonic_ns())}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(SETTLE_SECONDS)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=END_SECONDS)
    at = {}
    for line in messages.splitlines():
        for stage in STAGES:
            if line.startswith(stage):
                at[stage] = float(line.removeprefix(stage).split()[0])
    if len(at) != len(STAGES):
        raise RuntimeError(f"no timeline in {messages!r}")
    return at


def main() -> int:
    """Print the table and keep it under results/."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    guest = kernel.find("micro")
    initrd = initramfs.build(guest, script="true")
    command = [str(PYVIRT), "run", "-accel", "kvm", "-timeline"]
    command += ["-kernel", str(guest.image), "-initrd", str(initrd)]
    samples = [run(command) for _ in range(runs + WARM_UP)][WARM_UP:]
    lines = [
        f"{runs} runs; milliseconds since exec.",
        "",
        "| stage | least | median | most |",
        "|---|---|---|---|",
    ]
    for stage in STAGES:
        values = [sample[stage] for sample in samples]
        numbers = (min(values), statistics.median(values), max(values))
        lines.append(f"| {stage} | " + " | ".join(f"{n:.1f}" for n in numbers) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
