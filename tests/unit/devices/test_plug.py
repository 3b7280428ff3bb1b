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
        assert board.on_offer() == offer.value
        assert not offer.is_taken
        board.port.write(4, 4, offer.value)
        assert offer.is_taken
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
            st.tuples(st.just("dismiss"), st.integers(0, 15), st.just(0), st.just(0)),
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
        elif step == "dismiss":
            waiting.append(board.port.dismiss(at))
        elif step == "read":
            board.port.read(at, size)
        elif step == "withdraw" and at < len(waiting):
            assert board.port.withdraw(waiting.pop(at))
        elif step == "write":
            is_right = bool(waiting) and (at, size, value) == (4, 4, waiting[0].value)
            board.port.write(at, size, value)
            if is_right:
                taken += 1
                assert waiting.pop(0).is_taken
        assert board.on_offer() == (waiting[0].value if waiting else 0)
        assert board.page == (waiting[0].table if waiting else b"")
        assert board.port.is_waiting == bool(waiting)
        assert not any(offer.is_taken for offer in waiting)


def test_what_is_taken_cannot_be_withdrawn() -> None:
    board = Board()
    offer = board.offer()
    board.port.write(4, 4, offer.value)
    assert not board.port.withdraw(offer)


def test_an_old_answer_takes_nothing_new() -> None:
    board = Board()
    first = board.offer()
    board.port.withdraw(first)
    second = board.offer()
    board.port.write(4, 4, first.value)
    assert not second.is_taken
    assert second.table != first.table, "a guest may have loaded the first all the same"


def test_a_reset_takes_what_is_left_and_numbers_begin_anew() -> None:
    board = Board()
    offers = [board.offer() for _ in range(3)]
    assert board.on_offer()
    assert board.port.is_known
    board.port.reset()
    assert all(offer.is_taken for offer in offers)
    assert board.port.save()["known"] is False
    assert board.on_offer() == 0
    again = board.offer()
    assert again.table == b"table 0"
    assert again.value > offers[-1].value


def test_there_is_an_end_of_numbers() -> None:
    board = Board()
    for _ in range(MOST):
        board.port.write(4, 4, board.offer().value)
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
    board.port.write(4, 4, offer.value)
    board.port.remind()
    assert board.told == 2


def test_the_sequence_never_is_zero() -> None:
    board = Board()
    fields = {"number": 0, "sequence": 0xFF_FFFF, "known": False, "let-go": False}
    board.port.restore(Fields(fields))
    assert board.offer().value == 1 << 8


def test_saved_and_restored() -> None:
    board, other = Board(), Board()
    offer = board.offer()
    with pytest.raises(PyvirtError, match="has not yet taken a device"):
        board.port.save()
    assert board.on_offer()
    board.port.write(4, 4, offer.value)
    saved = board.port.save()
    other.port.restore(Fields(saved))
    other.port.resume()
    assert other.port.save() == saved
    assert other.offer().table == b"table 1"
    for wrong in ({"number": MOST + 1}, {"sequence": 1 << 24}, {"known": 3}, {"let-go": 1}):
        with pytest.raises(StateError):
            other.port.restore(Fields({**saved, **wrong}))


def test_one_that_is_to_go_is_named_by_its_slot_between_those_that_come() -> None:
    board = Board()
    heard: list[int] = []
    board.port.on_answer = lambda: heard.append(board.on_offer())
    first, leaver, last = board.offer(), board.port.dismiss(15), board.offer()
    assert first.value & layout.PLUG_LEAVER == last.value & layout.PLUG_LEAVER == 0
    assert leaver.value & layout.PLUG_LEAVER == 16
    board.port.write(4, 4, first.value)
    assert board.page == b"", "there is no table that could be loaded"
    told, before = board.told, board.port.has_let_go
    board.port.write(4, 4, leaver.value)
    assert (before, board.port.has_let_go) == (False, True)
    assert board.told == told + 1, "the guest's loop ends at one that is to go"
    assert board.page == last.table
    board.port.write(4, 4, last.value)
    assert heard == [leaver.value, last.value, 0]


def test_what_is_behind_an_offer_that_is_withdrawn_is_told_of() -> None:
    board = Board()
    leaver, last = board.port.dismiss(0), board.offer()
    told = board.told
    assert board.port.withdraw(leaver)
    assert (board.told, board.page) == (told + 1, last.table)
    assert board.port.withdraw(last)
    assert board.told == told + 1
