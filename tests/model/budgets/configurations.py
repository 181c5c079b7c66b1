"""The worlds of several budgets, and for each of their guards the small one that shows what breaks without it."""

from __future__ import annotations

from typing import Any

from tests.model.budgets import promises, protocol
from tests.model.budgets.state import FAULTS, Agent, Config
from tests.model.configurations import Mutant
from tests.model.counter import Terms
from tests.model.explore import Rules
from tests.model.lease_book import FAR

RULES = Rules(protocol.Protocol, promises.Tidy, promises.broken, promises.quiet)

ALONE = (Agent(0, (0, 1)),)
SHARED = (Agent(0, (0, 2)), Agent(0, (1, 2)))
"""Two agents of one process, and their group."""
PAIR = (Agent(0, (0, 1)), Agent(1, (2, 1)))
"""Two runners with an agent each, and the agents' group."""
WITH_OTHER = (Agent(0, (0, 1)), Agent(1, (1,)))
"""The same, but the other agent has no other budget than the group's."""
HOURLY = (Agent(0, (0, 1, 2)),)
HOURS = ((0, FAR), (0, 1), (1, FAR))
"""An agent with a day, an hour of its group, and the next hour."""

_SHORT = Terms()


def _mutant(guard: str, breaks: str, agents: tuple[Agent, ...], terms: Terms = _SHORT, **of: Any) -> Mutant:
    return Mutant(guard, breaks, Config(guard, agents=agents, terms=terms._replace(without=(guard,)), **of))


MUTANTS = (
    _mutant("the deadline of every lease is looked at", "P4", WITH_OTHER, caps=(2, 1), spare=(1,)),
    _mutant("an overage takes what each lease has free", "P4", SHARED, caps=(1, 1, 2), spare=(0, -1), ticks=False),
    _mutant("a lease is renewed until its own counter has nothing out", "P4", ALONE, tries=(1,)),
    _mutant("what an event draws is out", "P4", ALONE, tries=(1,), apart=True),
    _mutant(
        "a reply from before a grant does not say what is out",
        "P4",
        ALONE,
        tries=(1,),
        apart=True,
        faults=("lost message",),
    ),
    _mutant("a refusal waits for what others keep", "P6", SHARED, caps=(1, 1, 1), ticks=False),
    _mutant(
        "a refusal stands only for the totals that it was asked with",
        "P6",
        SHARED,
        caps=(1, 1, 2),
        tries=(2, 1),
        ticks=False,
    ),
    _mutant(
        "what came free or was needed by others counts, too",
        "P6",
        SHARED,
        caps=(1, 1, 2),
        tries=(2, 1),
        ticks=False,
        release=True,
    ),
    _mutant("what was granted is handed back when refused", "P11", ALONE, caps=(1, 2), ticks=False),
    _mutant("settle charges the budgets that the event names", "P12", ALONE, caps=(1, 1, 1), moves=(0, 2), ticks=False),
    _mutant("an event's rows are written in one transaction", "P12", ALONE, ticks=False, faults=("worker killed",)),
    _mutant("settled-already check", "P2", ALONE, tries=(1,), ticks=False, faults=("duplicate message",)),
    _mutant("charge clamped", "P1", ALONE, tries=(1,), spare=(-1,), ticks=False),
    _mutant(
        "local deadline ends with the day",
        "P9",
        ALONE,
        Terms(2, 0),
        periods=((0, FAR), (0, 2)),
        spare=(1,),
        skew=(0, -1),
    ),
)

SMALL = (
    Config("an agent and its group, any fault", tries=(1,), faults=FAULTS),
    Config("an agent and its group, overages", caps=(2, 2), spare=(0, -1), ticks=False, faults=("lost sync",)),
    Config("an agent and its group, overlapping syncs", tries=(1,), apart=True, faults=("slow sync", "late sync")),
    Config("two agents of a process", (1, 1, 2), SHARED, (1,)),
    Config("two agents of a process, releases", (1, 1, 1), SHARED, (2, 1), release=True, ticks=False),
    Config("two runners, a crash", (1, 1), WITH_OTHER, (1,), faults=("crash",)),
    Config("two runners, two budgets each", (1, 1, 1), PAIR, (1,), ticks=False, faults=("lost sync",)),
    Config("an hour that ends", (2, 1, 1), HOURLY, (1,), periods=HOURS, skew=(0, -1, 1)),
    Config(
        "an agent that is moved", (2, 1, 1), moves=(0, 2), ticks=False, faults=("duplicate message", "lost message")
    ),
)
"""Explored completely with every run of the tests."""

LARGE = (
    Config("an agent and its group, two calls, any fault", caps=(2, 2), spare=(0, -1), release=True, faults=FAULTS),
    Config("two agents of a process, two calls", (1, 1, 2), SHARED, (2, 1), spare=(0, -1), release=True),
    Config("two agents of a process, any fault", (1, 1, 2), SHARED, (1,), faults=FAULTS),
    Config("two runners, any fault", (1, 1), WITH_OTHER, (1,), faults=FAULTS),
    Config("two runners, two budgets each, any fault", (1, 1, 1), PAIR, (1,), faults=FAULTS),
    Config("an hour that ends, any fault", (2, 1, 1), HOURLY, periods=HOURS, skew=(0, -1, 1), faults=FAULTS),
)
"""For hours and gigabytes: `python -m tests.model --large`."""
