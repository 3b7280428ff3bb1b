"""The real-time clock is on its ports where it is asked for, and nowhere else."""

from __future__ import annotations

import pytest
from pyvirt.devices.rtc import RtcConfig

from .conftest import Make
from .support import MAILBOX

pytestmark = pytest.mark.any_kvm

IN_8, OUT_8 = 1, 4  # of script.S
VALID_TIME = 0x80
NOTHING = 0xFF


@pytest.mark.parametrize(
    ("config", "found"),
    [(None, NOTHING), (RtcConfig(), VALID_TIME), (RtcConfig(0, "vm"), VALID_TIME)],
)
def test_the_clock(make: Make, config: RtcConfig | None, found: int) -> None:
    guest = make("script", rtc=config)
    guest.write_words(MAILBOX, OUT_8, 0x70, 0x0D, 0, IN_8, 0x71, 0, 0, 0)
    guest.run()
    assert guest.read_words(MAILBOX + 48, 1) == [found]


def test_a_time_stands_while_the_machine_does(make: Make) -> None:
    guest = make("script", rtc=RtcConfig(0, "vm"))
    assert guest._timed is not None
    assert guest._timed.rtc is not None
    clock = guest._timed.rtc.clock
    assert clock is not None
    before = clock.now()
    assert clock.now() == before == 0
    guest.run()
    guest.stop()
    assert clock.now() > 0
