"""What values are taken for one another, and what are not."""

from __future__ import annotations

import pytest
from pyvirt.errors import QmpError
from pyvirt.qmp.schema import Only


@pytest.mark.parametrize(("offered", "given"), [(False, 0), (0, False), (True, 1), ("1", 1)])
def test_what_is_equal_is_not_the_same(offered: bool | int | str, given: bool | int | str) -> None:
    only = Only("a reason", offered)
    assert only.read(offered, "field") is offered
    with pytest.raises(QmpError, match="a reason"):
        only.read(given, "field")
