"""What a guest prints on its console: reports of the kernel's, and test results in KTAP.

The first byte chooses between the two, the second in what pieces the rest comes.
"""

from __future__ import annotations

from pyvirt.harness.judge.classifier import Classifier
from pyvirt.harness.judge.splat import Splat
from pyvirt.harness.plugin.ktap import Lines, Parser, Point

from .input import Input


def splats(text: bytes, size: int) -> list[Splat]:
    found: list[Splat] = []
    classifier = Classifier(found.append)
    for at in range(0, len(text), size):
        classifier.feed(text[at : at + size], 0.0)
    classifier.finish()
    return found


def points(text: bytes, size: int, end: int) -> list[Point]:
    lines, parser = Lines(), Parser()
    whole = [line for at in range(0, len(text), size) for line in lines.feed(text[at : at + size])]
    for line in [*whole, *lines.end()]:
        parser.feed(line)
    if end & 1:
        parser.crashed("the guest has ended")
    return parser.finish()


def fuzz(data: bytes) -> None:
    source = Input(data)
    which, size = source.take(1), source.take(1) % 64 + 1
    text = source.rest()
    if which & 1:
        text = text.replace(b"\0", b"")
        whole = splats(text, len(text) + 1)
        assert whole == splats(text, size)
        assert all("\n" not in one.title and len(one.fingerprint) == 12 for one in whole)
    else:
        told = points(text, len(text) + 1, which >> 1)
        assert told == points(text, size, which >> 1)
        assert told
        assert all(one.title.isprintable() or "\t" in one.title for one in told)
