"""How many descriptors a second one core takes through the virtqueue code, on this host.

    .venv/bin/python benches/ring.py [RUNS]

native/tests/virtio/bench_ring.c, compiled as the extension is: an honest driver and a device that
does nothing else take turns on one thread, with chains as of a block request (3 descriptors) in a
queue of 256, event indexes on. Beside it the least that a device could do on the same rings, which
checks nothing and asks for no notification. The driver's own work is in both figures. Exit status
1: below the budget.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from pyvirt.native.build import HERE
from pyvirt.native.program import build

RUNS = 5
RUN_SECONDS = 60
BUDGET = 5e6
DESCRIPTORS = 3  # of a chain
PROGRAM = HERE / "tests/virtio/bench_ring.c"
RESULTS = Path(__file__).parent / "results"


def medians_of(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the median of the first numbers and that of the second."""
    checked, plain = zip(*pairs, strict=True)
    return statistics.median(checked), statistics.median(plain)


def main() -> int:
    """Print the table and keep it under results/."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    samples: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    program = build(PROGRAM, "plain")
    for _ in range(runs):
        output = subprocess.run(
            [str(program)], check=True, capture_output=True, text=True, timeout=RUN_SECONDS
        )
        for line in output.stdout.splitlines():
            kind, batch, checked, plain = line.split()
            samples[f"{kind} | {batch}"].append((float(checked), float(plain)))
    lines = [
        f"{runs} runs; million descriptors a second of one core, driver and device together.",
        "",
        "The plain loop is the least a device could do: no checks, no say in notifications.",
        "",
        "| chains | batch | least | median | most | plain loop, median | ratio | ns more a chain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    medians = {name: medians_of(pairs) for name, pairs in samples.items()}
    for name, pairs in samples.items():
        checked, plain = medians[name]
        rates = [rate for rate, _ in pairs]
        numbers = [f"{rate / 1e6:.1f}" for rate in (min(rates), checked, max(rates), plain)]
        cost = 1e9 * DESCRIPTORS * (1 / checked - 1 / plain)
        lines.append(f"| {name} | {' | '.join(numbers)} | {checked / plain:.2f} | {cost:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ring.md").write_text(text, encoding="utf-8")
    return int(min(checked for checked, _ in medians.values()) < BUDGET)


if __name__ == "__main__":
    sys.exit(main())
