"""Errors cross processes and copies with all that they say; a refusal's amounts add up, and it says what to do."""

from __future__ import annotations

import ast
import copy
import importlib
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

import daycap
from daycap import CapExceeded, errors
from daycap.errors import AgentExists, DaycapError, FullBudget, UnknownModel
from daycap.integrations.httpx import _with_roots
from tests.in_memory import CAP, Deployment
from tests.refused import adds_up, ask_for_a_price, reserve_too_much
from tests.runner_without_io import CAP as SMALL_CAP
from tests.runner_without_io import Runner, held


def pickled(error: Any, protocol: int) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))


COPIES: dict[str, Callable[[Any], Any]] = {
    **{f"pickle {p}": partial(pickled, protocol=p) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@cache
def all_errors() -> list[type[DaycapError]]:
    """Every class of errors in the project, by its sources: not every module can be imported without settings."""
    root = Path(daycap.__file__).parent.parent
    classes = [
        (file, node)
        for package in ("daycap", "worker", "tasks")
        for file in sorted((root / package).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    found: dict[str, Path] = {"DaycapError": Path(errors.__file__)}
    before = 0
    while len(found) > before:
        before = len(found)
        found |= {
            node.name: file
            for file, node in classes
            if any(ast.unparse(base).rpartition(".")[2] in found for base in node.bases)
        }
    return [
        getattr(importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts)), name)
        for name, file in found.items()
    ]


def refusal(
    estimate: int = 50_000, *, cap: int = 1_000_000, spent: int = 900_000, held: int = 30_000, waiting: int = 10_000
) -> CapExceeded:
    own = FullBudget(
        budget=None,
        period="2026-11-24",
        cap_micros=cap,
        spent_micros=spent,
        held_micros=held,
        waiting_micros=waiting,
        leased_micros=20_000,
        remaining_micros=cap - spent - held - waiting - 20_000,
        ends_in_s=12_000.0,
    )
    return CapExceeded("agent-7", estimate, [own])


def made(kind: type[DaycapError]) -> DaycapError:
    """One as it is raised, or as much like it as its class allows."""
    if issubclass(kind, CapExceeded):
        error: DaycapError = refusal()
        error.__class__ = kind
        return error
    if issubclass(kind, UnknownModel):
        return kind("gpt-99", "openai", "nobody knows it")
    error = kind.__new__(kind, "something happened")
    error.__dict__.update(agent="agent-7", more=["what", 1])
    return error


def same(one: BaseException, other: BaseException) -> bool:
    return (type(one), str(one), one.args, one.__dict__) == (type(other), str(other), other.args, other.__dict__)


@pytest.mark.parametrize("way", COPIES)
def test_every_error_is_copied_whole(way: str) -> None:
    kinds = all_errors()
    assert {CapExceeded, UnknownModel, AgentExists} <= {*kinds}
    for kind in (*kinds, *(_with_roots(kind) for kind in kinds)):
        error = made(kind)
        error.add_note("seen by the caller")
        assert same(COPIES[way](error), error), kind


def test_a_clients_error_stays_one() -> None:
    error = refusal()
    error.__class__ = _with_roots(CapExceeded)

    again = pickle.loads(pickle.dumps(error))

    assert isinstance(again, CapExceeded)
    assert isinstance(again, openai.OpenAIError)
    assert isinstance(again, anthropic.AnthropicError)


def test_a_process_pool_hands_errors_on() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        refused = pool.submit(reserve_too_much).exception(timeout=60)
        unknown = pool.submit(ask_for_a_price).exception(timeout=60)

    assert isinstance(refused, CapExceeded)
    assert (refused.agent, refused.cap_micros, refused.estimate_micros) == ("agent-7", 10, 11)
    assert isinstance(unknown, UnknownModel)
    assert (unknown.model, unknown.provider) == ("gpt-99", None)


# --- what a refusal says ------------------------------------------------------------------------------------


def test_it_says_its_amounts_in_dollars() -> None:
    assert str(refusal()) == (
        "agent agent-7: $0.05 would exceed the cap of $1.00 for 2026-11-24: $0.90 spent, $0.03 held here, $0.01 "
        "waiting to be settled, $0.02 leased by other runners, $0.04 remaining; it may fit when calls in progress end"
    )


@pytest.mark.parametrize(
    ("refused", "retry_after_s", "says"),
    [
        (refusal(), 1.0, "it may fit when calls in progress end"),
        (refusal(90_000), 1.0, "it may fit"),
        (refusal(90_001), 12_000.0, "it cannot fit before the day ends in 3 h 20 min"),
        (refusal(1_000_000), 12_000.0, "3 h 20 min"),
        (refusal(1_000_001), None, "exceeds the cap of a whole day, so waiting does not help"),
        (refusal(1, cap=920_000), 1.0, "$0.04 over the cap, which was lowered; it may fit"),
    ],
)
def test_it_says_whether_waiting_helps(refused: CapExceeded, retry_after_s: float | None, says: str) -> None:
    assert refused.retry_after_s == retry_after_s
    assert says in str(refused)


def test_each_part_is_what_it_is_called(deployment: Deployment) -> None:
    """Two processes: what one holds, has not settled, and has free; what the other holds."""
    one, other = deployment.wallet(slice_seconds=0), deployment.wallet(slice_seconds=0)
    theirs = other.reserve("agent-7", 300_000)
    one.reserve("agent-7", 50_000).finalize(40_000)
    assert one.flush() == ()
    held = one.reserve("agent-7", 200_000)
    waiting = one.reserve("agent-7", 100_000)
    deployment.ledger.refuses = True
    waiting.finalize(70_000)

    with pytest.raises(CapExceeded) as refused:
        one.reserve("agent-7", CAP - 39_999)

    said = refused.value
    assert (said.spent_micros, said.held_micros, said.waiting_micros) == (40_000, 200_000, 70_000)
    assert (said.leased_micros, said.remaining_micros) == (300_000, CAP - 610_000)
    assert adds_up(said)
    assert [hold.ended for hold in (theirs, held)] == [False, False]


def test_it_adds_up_while_others_spend(deployment: Deployment) -> None:
    """Two processes of four threads each, until the money is gone and longer."""
    wallets = [deployment.wallet(slice_seconds=slice_s) for slice_s in (0, 0.001)]
    refusals: list[CapExceeded] = []

    def spend(number: int) -> None:
        for step in range(60):
            estimate = 1 + (number * 7919 + step * 104_729) % 50_000
            try:
                hold = wallets[number % 2].reserve("agent-7", estimate)
            except CapExceeded as refused:
                refusals.append(refused)
            else:
                hold.finalize(estimate * (step % 3) // 2)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(spend, range(8)))

    assert refusals
    assert all(map(adds_up, refusals))


def test_a_retired_leases_holds_are_held_here() -> None:
    runner = Runner()
    hold = held(runner, 60_000)
    runner.book.leases.replace(hold._lease)

    with pytest.raises(CapExceeded) as refused:
        runner.ask(SMALL_CAP)

    assert (refused.value.held_micros, refused.value.leased_micros) == (60_000, 0)
    assert adds_up(refused.value)
