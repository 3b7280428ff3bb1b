"""The options of the balloon: what they make, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.devices.virtio.balloon import BalloonConfig

from ...refusal import attempt, refusal

DRIVER = "virtio-balloon-device"


def made(members: str = "") -> BalloonConfig:
    (found,) = config(parse(["-device", f"{DRIVER}{members}"])).devices
    assert isinstance(found, BalloonConfig)
    return found


def test_a_balloon() -> None:
    plain = made()
    assert (plain.id, plain.deflate_on_oom, plain.free_page_reporting, plain.auto) == (
        "balloon0",
        False,
        False,
        None,
    )
    full = made(",id=b,deflate-on-oom=true,free-page-reporting=on,free-page-hint=off")
    assert (full.id, full.deflate_on_oom, full.free_page_reporting) == ("b", True, True)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (",auto-balloon=on", (50, 10)),
        (",auto-balloon=true,membuf-percent=20,monitor-interval=300", (20, 300)),
        (",monitor-interval=5,membuf-percent=80,auto-balloon=yes", (80, 5)),
        (",auto-balloon=off,membuf-percent=20", None),
        (",monitor-interval=5", None),
    ],
)
def test_a_balloon_that_follows(members: str, expected: tuple[int, int] | None) -> None:
    auto = made(members).auto
    assert (auto and (auto.percent, auto.interval)) == expected


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        (["", ""], f"-device {DRIVER}: there is one already; a guest has one balloon"),
        ([",id=a", ",id=b"],
         f"-device {DRIVER},id=b: there is one already; a guest has one balloon"),
        ([",free-page-hint=on"],
         ("-device free-page-hint on: this balloon asks for no hints; give free-page-reporting=on, "
          "by which the host, and a snapshot, is rid of more")),
        ([",membuf-percent=19"], "-device membuf-percent 19: not a number from 20 to 80"),
        ([",membuf-percent=81"], "-device membuf-percent 81: not a number from 20 to 80"),
        ([",monitor-interval=4"], "-device monitor-interval 4: not a number from 5 to 300"),
        ([",monitor-interval=301"], "-device monitor-interval 301: not a number from 5 to 300"),
        ([",deflate-on-oom=maybe"],
         "-device deflate-on-oom maybe: not one of on, yes, true, off, no, false"),
        ([",id="], "-device id: 0 characters, an id has 1 to 255"),
        ([",color=red"],
         ("-device color: not understood here; accepted are id, deflate-on-oom, "
          "free-page-reporting, free-page-hint, auto-balloon, membuf-percent, monitor-interval")),
        ([",id=a,id=a"], "-device id=a,id=a: id is given twice; give it once"),
    ],
)  # fmt: skip
def test_refused(devices: list[str], text: str) -> None:
    words = [word for members in devices for word in ("-device", f"{DRIVER}{members}")]
    assert refusal(lambda: parse(words)) == text


@given(
    st.lists(
        st.sampled_from(
            [",", "id=", "on", "auto-balloon=", "membuf-percent=", "50", "monitor-interval=", "é"]
        )
    )
)
def test_any_text_is_understood_or_refused(words: list[str]) -> None:
    attempt(lambda: parse(["-device", f"{DRIVER},{''.join(words)}"]))
