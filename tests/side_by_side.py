"""The order of the tests where several processes run them: `pytest -n 6`.

What computes goes to a process a file, at once; beside it run the tests that mostly wait. So no test that is long is
left over at the end, and few processes at a time want a whole core.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_COMPUTE = ("tests/model/test_model", "tests/simulation/", "tests/properties/test_wallet")
_LONG = ("tests/integration/test_command_line", "tests/amqp/")
_APART = ("tests/faults/test_", "tests/integration/test_run", "tests/unit/test_examples_and_types")
"""Each test of these is long, and has servers of its own. Other files stay in one process, as some share servers."""

_FIRST = (*_COMPUTE, *_LONG, *_APART)


class _Scheduling(LoadScopeScheduling):
    """What is handed to a process in one piece: a file, or a test of `_APART`."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/amqp/"):
            return "tests/amqp"  # They share a RabbitMQ, which takes as long to start as a test.
        return nodeid if nodeid.startswith(_APART) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: next((at for at, part in enumerate(_FIRST) if item.nodeid.startswith(part)), 99))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return _Scheduling(config, log)
