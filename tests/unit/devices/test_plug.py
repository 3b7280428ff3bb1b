"""The registers by which a guest takes devices: one table after another, whatever it answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.devices.plug import Offer, PlugPort
from pyvirt.errors import ConfigError, PyvirtError, StateError
from pyvirt.state import Fields
from pyvirt.vmm import layout

MOST = 20


class Board:
    """A port, the page, and how often the guest was told."""

    def __init__(self, most: int = MOST) -> None:
        self.page = b""
        self.told = 0
        self.port = PlugPort(self._show, self._tell, most=most)

    def _show(self, table: bytes) -> None:
        self.page = table

    def _tell(self) -> None:
        self.told += 1

    def offer(self) -> Offer:
        return self.port.offer(lambda number: b"table %d" % number)

    def on_offer(self) -> int:
        return self.port.read(0, 4)


def test_a_burst_is_taken_one_after_another() -> None:
    board = Board()
    offers = [board.offer() for _ in range(5)]
    for number, offer in enumerate(offers):
        assert board.page == b"table %d" % number
        assert board.on_offer() == offer.sequence
        assert not offer.wait(0)
        board.port.write(4, 4, offer.sequence)
        assert offer.wait(0)
        assert offer.wait(0)
    assert board.on_offer() == 0
    assert board.page == b""
    assert board.told == 5


def test_where_the_registers_are() -> None:
    assert layout.PLUG_SIZE == PlugPort.SIZE


@given(
    st.lists(
        st.one_of(
            st.just(("offer", 0, 0, 0)),
            st.tuples(
                st.just("write"),
                st.integers(0, 7),
                st.sampled_from((1, 2, 4, 8)),
                st.one_of(st.integers(0, 8), st.integers(0, 2**64 - 1)),
            ),
            st.tuples(st.just("read"), st.integers(0, 7), st.sampled_from((1, 2, 4)), st.just(0)),
            st.tuples(st.just("withdraw"), st.integers(0, MOST), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)
def test_only_the_right_answer_takes_and_only_the_first(
    steps: list[tuple[str, int, int, int]],
) -> None:
    board = Board(most=1000)
    waiting: list[Offer] = []
    taken = 0
    for step, at, size, value in steps:
        if step == "offer":
            waiting.append(board.offer())
        elif step == "read":
            board.port.read(at, size)
        elif step == "withdraw" and at < len(waiting):
            assert board.port.withdraw(waiting.pop(at))
        elif step == "write":
            is_right = bool(waiting) and (at, size, value) == (4, 4, waiting[0].sequence)
            board.port.write(at, size, value)
            if is_right:
                taken += 1
                assert waiting.pop(0).is_taken
        assert board.on_offer() == (waiting[0].sequence if waiting else 0)
        assert board.page == (waiting[0].table if waiting else b"")
        assert board.port.is_waiting == bool(waiting)
        assert not any(offer.is_taken for offer in waiting)


def test_what_is_taken_cannot_be_withdrawn() -> None:
    board = Board()
    offer = board.offer()
    board.port.write(4, 4, offer.sequence)
    assert not board.port.withdraw(offer)


def test_an_old_answer_takes_nothing_new() -> None:
    board = Board()
    first = board.offer()
    board.port.withdraw(first)
    second = board.offer()
    board.port.write(4, 4, first.sequence)
    assert not second.is_taken
    assert second.table != first.table, "a guest may have loaded the first all the same"


def test_a_reset_takes_what_is_left_and_numbers_begin_anew() -> None:
    board = Board()
    offers = [board.offer() for _ in range(3)]
    assert board.on_offer()
    assert board.port.is_known
    board.port.reset()
    assert all(offer.wait(0) for offer in offers)
    assert board.port.save()["known"] is False
    assert board.on_offer() == 0
    again = board.offer()
    assert again.table == b"table 0"
    assert again.sequence > offers[-1].sequence


def test_there_is_an_end_of_numbers() -> None:
    board = Board()
    for _ in range(MOST):
        board.port.write(4, 4, board.offer().sequence)
    with pytest.raises(ConfigError, match="told of 20 devices since it started, the most"):
        board.offer()
    assert not board.port.is_waiting


def test_a_guest_is_reminded_as_long_as_there_is_something() -> None:
    board = Board()
    board.port.remind()
    assert board.told == 0
    offer = board.offer()
    board.port.remind()
    assert board.told == 2
    board.port.write(4, 4, offer.sequence)
    board.port.remind()
    assert board.told == 2


def test_the_sequence_never_is_zero() -> None:
    board = Board()
    fields = {"number": 0, "sequence": 0xFFFF_FFFF, "known": False}
    board.port.restore(Fields(fields))
    assert board.offer().sequence == 1


def test_saved_and_restored() -> None:
    board, other = Board(), Board()
    offer = board.offer()
    with pytest.raises(PyvirtError, match="has not yet taken a device"):
        board.port.save()
    assert board.on_offer()
    board.port.write(4, 4, offer.sequence)
    saved = board.port.save()
    other.port.restore(Fields(saved))
    other.port.resume()
    assert other.port.save() == saved
    assert other.offer().table == b"table 1"
    for wrong in ({"number": MOST + 1}, {"sequence": -1}, {"known": 3}):
        with pytest.raises(StateError):
            other.port.restore(Fields({**saved, **wrong}))
