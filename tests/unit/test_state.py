"""What a state's fields may be, and what is said of those that may not (state.py)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.errors import PyvirtError, StateError
from pyvirt.state import Fields


def refusal(read: Callable[[Fields], object], values: object) -> str:
    with pytest.raises(StateError) as caught:
        read(Fields(values))
    text = str(caught.value)
    assert text.startswith("state: ")
    assert text.isprintable()
    return text.removeprefix("state: ")


def test_a_refusal_is_an_error_of_ours() -> None:
    assert issubclass(StateError, PyvirtError)
    assert StateError.exit_status == 1


def test_every_kind_of_field() -> None:
    text = json.dumps(
        {
            "count": 5,
            "on": True,
            "name": "vda",
            "mac": "525400000001",
            "inner": {"x": 1},
            "nothing": None,
            "list": [{"a": 1}, {"a": 2}],
            "numbers": [1, 2, 3],
            "by_name": {"vda": {"a": 3}, "vdb": {"a": 4}},
        }
    )
    fields = Fields(json.loads(text))
    assert fields.integer("count", 5, 5) == 5
    assert fields.flag("on") is True
    assert fields.text("name", 3) == "vda"
    assert fields.data("mac", 6) == fields.data("mac", most=6) == bytes.fromhex("525400000001")
    assert fields.section("inner").integer("x", 0, 1) == 1
    assert fields.optional("nothing") is None
    assert [one.integer("a", 1, 2) for one in fields.items("list", 2)] == [1, 2]
    assert fields.integers("numbers", 1, 3, most=3) == [1, 2, 3]
    found = {name: one.integer("a", 3, 4) for name, one in fields.sections("by_name").items()}
    assert found == {"vda": 3, "vdb": 4}
    assert fields.has("count")
    assert not fields.has("colour")
    fields.done()


@pytest.mark.parametrize(
    ("read", "value", "text"),
    [
        (lambda f: f.integer("a", 0, 9), 10, "a: 10 is not between 0 and 9"),
        (lambda f: f.integer("a", 0, 9), -1, "a: -1 is not between 0 and 9"),
        (lambda f: f.integer("a", 0, 9), True, "a: true is not an integer"),
        (lambda f: f.integer("a", 0, 9), 1.0, "a: a fraction is not an integer"),
        (lambda f: f.integer("a", 0, 9), "1", 'a: "1" is not an integer'),
        (lambda f: f.integer("a", 0, 9), None, "a: null is not an integer"),
        (lambda f: f.integer("a", 0, 9), 1 << 9999, "a: an integer of 10000 bits is not between"),
        (lambda f: f.flag("a"), 1, "a: 1 is neither true nor false"),
        (lambda f: f.flag("a"), {}, "a: a section is neither true nor false"),
        (lambda f: f.text("a", 3), "abcd", "a: has 4 characters, and 3 are the most"),
        (lambda f: f.text("a", 3), 5, "a: 5 is not a string"),
        (lambda f: f.data("a", 2), "abc", 'a: "abc" is not bytes in hexadecimal'),
        (lambda f: f.data("a", 2), "a b", 'a: "a b" is not bytes in hexadecimal'),
        (lambda f: f.data("a", 2), "ABCD", 'a: "ABCD" is not bytes in hexadecimal'),
        (lambda f: f.data("a", 2), "ab", "a: has 1 bytes, not 2"),
        (lambda f: f.data("a", most=1), "abcd", "a: has 2 bytes, and 1 are the most"),
        (lambda f: f.data("a", 2), [], "a: a list is not bytes in hexadecimal"),
        (lambda f: f.section("a"), [], "a: a list is not a section of fields"),
        (lambda f: f.optional("a"), 3, "a: 3 is not a section of fields"),
        (lambda f: f.section("a"), {1: 2}, "a: a section is not a section of fields"),
        (lambda f: f.items("a", 1), {}, "a: a section is not a list"),
        (lambda f: f.items("a", 1), [{}, {}], "a: has 2 entries, and 1 are the most"),
        (lambda f: f.items("a", 2), [{}, 3], "a.1: 3 is not a section of fields"),
        (lambda f: f.integers("a", 0, 9, most=3), [1, 10], "a.1: 10 is not between 0 and 9"),
        (lambda f: f.integers("a", 0, 9, most=1), [1, 1], "a: has 2 entries, and 1 are the most"),
        (lambda f: f.sections("a"), {"b": 1}, "a.b: 1 is not a section of fields"),
    ],
)
def test_what_a_field_may_not_be(
    read: Callable[[Fields], object], value: object, text: str
) -> None:
    assert refusal(read, {"a": value}).startswith(text)


def test_the_path_leads_to_the_field() -> None:
    values = {"devices": {"vda": {"queues": [{"next_avail": 70000}]}}}

    def read(fields: Fields) -> None:
        queue = fields.section("devices").section("vda").items("queues", 1)[0]
        queue.integer("next_avail", 0, 65535)

    text = "devices.vda.queues.0.next_avail: 70000 is not between 0 and 65535"
    assert refusal(read, values) == text


def test_a_field_that_is_missing() -> None:
    assert refusal(lambda f: f.section("a").flag("b"), {"a": {}}) == "a.b: is missing"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"a": {}, "colour": 1}, "colour"),
        ({"a": {"colour": 1}}, "a.colour"),
    ],
)
def test_a_field_that_nobody_has_read(values: object, name: str) -> None:
    def read(fields: Fields) -> None:
        fields.section("a")
        fields.done()

    assert refusal(read, values) == f"{name}: is no field that this pyvirt knows"


def test_names_of_others_stay_in_their_line() -> None:
    name = "a\nb\x1b[31m" + "c" * 100
    assert refusal(lambda f: f.done(), {name: 1}).startswith(r"a\nb\x1b[31mccc")
    assert refusal(lambda f: f.flag("a"), {"a": "\n" * 100}).startswith(r'a: "\n\n')


def test_a_reader_has_reasons_of_its_own() -> None:
    fields = Fields({"a": {"size": 3}}).section("a")
    assert str(fields.wrong("size", "is odd")) == "state: a.size: is odd"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_no_value_raises_anything_else(value: object) -> None:
    for read in (
        lambda f: f.integer("a", 0, 9),
        lambda f: f.integers("a", 0, 9, most=2),
        lambda f: f.flag("a"),
        lambda f: f.text("a", 5),
        lambda f: f.data("a", 1),
        lambda f: f.data("a", most=5),
        lambda f: f.section("a").done(),
        lambda f: f.optional("a"),
        lambda f: [one.done() for one in f.items("a", 2)],
        lambda f: f.sections("a"),
    ):
        with contextlib.suppress(StateError):
            read(Fields({"a": value}))
