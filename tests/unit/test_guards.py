"""The guards that `python -m tests.mutation.guards` takes out are still where it looks for them."""

from __future__ import annotations

import pytest

from tests.mutation.guards import GUARDS, ROOT, Edit


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_can_be_taken_out(guard: str) -> None:
    for edit in GUARDS[guard]:
        source = (ROOT / edit.file).read_text()
        assert edit.of(source) != source


def test_code_that_has_moved_on_is_noticed() -> None:
    with pytest.raises(ValueError, match="0 times, not once"):
        Edit("a.py", "before", "").of("after")
