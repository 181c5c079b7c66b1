"""The configurations that are explored, and for each guard the small one that shows what breaks without it."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.model.counter import Terms
from tests.model.state import FAULTS, RARE, Config

ONE, TWO = ((0, 0),), ((0, 0), (1, 0))
RESTARTED = ((0, 0), (0, 0))
FOUR = ((0, 0), (0, 0), (1, 0), (1, 0))


_SHORT = Terms()


class Mutant(NamedTuple):
    """Guards that are left out, the promise that breaks without them, and where."""

    guards: str
    breaks: str
    config: Any


def _mutant(
    guards: str | tuple[str, ...], breaks: str, leases: tuple[tuple[int, int], ...], terms: Terms = _SHORT, **of: Any
) -> Mutant:
    without = (guards,) if isinstance(guards, str) else guards
    name = " and ".join(without)
    return Mutant(name, breaks, Config(name, leases, terms=terms._replace(without=without), **of))


def _folding(
    guards: str | tuple[str, ...],
    breaks: str,
    leases: tuple[tuple[int, int], ...] = RESTARTED,
    tries: tuple[int, ...] = (1,),
    cap: int = 1,
    **of: Any,
) -> Mutant:
    return _mutant(guards, breaks, leases, tries=tries, cap=cap, farewells=True, **of)


UNCHARGED = "what is drawn is used though it was not charged"


MUTANTS = (
    # What keeps the same money from being lent or spent twice.
    _mutant("older seq ignored", "P3", ONE, publishes=2, ticks=False),
    _mutant(("older seq ignored", UNCHARGED), "P4", ONE, tries=(3,), publishes=2, ticks=False),
    _mutant("put back accepted", "P4", TWO, cap=1, tries=(1,), faults=("flush",)),
    _mutant("fence", "P4", TWO, cap=1, tries=(1,), faults=("flush",)),
    _mutant("fence and expire wait for the queue", "P4", TWO, cap=1, tries=(1,), faults=("crash",)),
    _mutant("run id compared", "P4", TWO, cap=1, tries=(1,), faults=("failover",)),
    _mutant(
        ("what an old copy had lent is forgotten", "a copy's lease that is not named leaves"),
        "P4",
        TWO,
        cap=1,
        tries=(1,),
        faults=("failover", "slow sync"),
        most_faults=2,
    ),
    _mutant(
        "first is a time limit",
        "P4",
        TWO,
        cap=1,
        tries=(1,),
        row=False,
        open=False,
        publishes=2,
        faults=("flush",),
    ),
    _mutant(
        "first ends before a fence can",
        "P4",
        TWO,
        cap=1,
        tries=(1,),
        row=False,
        open=False,
        publishes=2,
        faults=("flush",),
    ),
    _mutant(
        ("drawn never travels without spent of the same snapshot", UNCHARGED),
        "P4",
        ONE,
        cap=1,
        publishes=2,
        ticks=False,
    ),
    _mutant(UNCHARGED, "P4", ONE, cap=1, caps=(0, 1), faults=("set cap",), most_faults=2),
    _mutant("expiry decided inside the script", "P4", TWO, cap=1, tries=(1,)),
    _mutant("local deadline", "P4", TWO, cap=1, spare=(1,)),
    _mutant("local <= server's deadline", "P4", TWO, Terms(3, 2), cap=1, tries=(1,), faults=("slow sync",)),
    _mutant(
        "a late reply thrown away",
        "P4",
        TWO,
        cap=1,
        tries=(2, 1),
        spare=(1,),
        overlap=True,
        faults=("slow sync",),
    ),
    _mutant(
        ("what came free of a dead lease is handed back", "no hold from memory past the cap"),
        "P4",
        TWO,
        cap=1,
        tries=(2, 1),
        spare=(1,),
    ),
    _mutant("free money deducted before it is sent", "P4", TWO, cap=1, spare=(1,)),
    _mutant("finalize frees only held - drawn", "P4", ONE, cap=1, ticks=False),
    _mutant(("runner never reports drawn", UNCHARGED), "P4", ONE, cap=1),
    _mutant("outstanding clamped at 0", "P4", TWO, cap=2),
    # What keeps the ledger right.
    _mutant("charge clamped", "P1", ONE, cap=1, tries=(1,), spare=(-1,), ticks=False),
    _mutant("SQL row lock", "P1", ONE, cap=1, tries=(1,), ticks=False, workers=2, publishes=2),
    _mutant(
        "day row inserted before the lock",
        "P1",
        ONE,
        cap=1,
        tries=(1,),
        row=False,
        ticks=False,
        workers=2,
        publishes=2,
    ),
    _mutant("settled-already check", "P2", ONE, tries=(1,), ticks=False, faults=("duplicate message",)),
    _mutant("runner never reports drawn", "P3", ONE, cap=1, faults=("crash", "lost message"), most_faults=2),
    _mutant("a cap change raises seq", "P3", ONE, cap=1, caps=(2,), ticks=False, faults=("set cap",)),
    # What keeps money from being refused that is there, and events from being lost.
    _mutant("granted is absolute", "P6", ONE, cap=1, ticks=False, faults=("lost sync",)),
    _mutant("recalled money is handed back", "P6", TWO, Terms(2, 0), tries=(1,), estimates=(1, 2), spare=(1,)),
    _mutant("settled up to the first gap", "P7", ONE, cap=2, tries=(2,), faults=("lost message",)),
    _mutant(
        "no refusal while another question keeps free money",
        "P6",
        ONE,
        cap=1,
        tries=(3,),
        estimates=(1, 2),
        release=True,
        ticks=False,
        top_ups=2,
    ),
    _mutant(
        "no refusal for what a retired lease has free",
        "P6",
        RESTARTED,
        cap=2,
        tries=(3,),
        spare=(1,),
        ticks=False,
        faults=("lost message",),
    ),
    _mutant("local deadline ends with the day", "P9", ONE, Terms(2, 0), midnight=2, spare=(1,)),
    # What keeps the counter equal to the ledger where a publish carries what changed.
    _mutant(
        "a delta needs its base",
        "P3",
        RESTARTED,
        spare=(1,),
        ticks=False,
        faults=("crash", "lost publish"),
        most_faults=2,
    ),
    _mutant(
        ("a delta needs its base", "the sum of what was drawn is compared"),
        "P6",
        RESTARTED,
        cap=3,
        tries=(3,),
        ticks=False,
        faults=("crash", "lost publish"),
        most_faults=2,
    ),
    _mutant("only a whole publish opens", "P3", TWO, cap=1, tries=(1,), faults=("failover",)),
    _folding("a whole publish only opens", "P3", ONE, publishes=2, faults=("flush",), most_faults=2),
    _folding("an older whole publish changes no lease", "P3", publishes=2, faults=("flush",)),
    _folding("an older delta changes no lease", "P3", publishes=2),
    # What keeps that right where the ledger is restored from a copy.
    _folding("sums are compared at the same seq", "P3", tries=(2,), faults=("restore",)),
    _folding(
        "a named lease is compared at the same seq", "P7", tries=(2,), cap=2, ticks=False, faults=RARE, most_faults=2
    ),
    _folding(
        "a duplicate names its lease",
        "P7",
        tries=(2,),
        cap=2,
        ticks=False,
        faults=(*RARE, "worker killed"),
        most_faults=3,
    ),
    _mutant("a lease keeps what it was told", "P6", ONE, cap=3, tries=(3,), ticks=False, faults=("restore",)),
    _mutant("a lease that is not named stays", "P4", TWO, tries=(2, 1), ticks=False, faults=("restore",)),
    _folding("what was drawn does not shrink", "P4", tries=(2,), faults=("restore",)),
    # Farewell and fold.
    _folding("no farewell with a hold", "P4", TWO),
    _folding("no farewell while a question is under way", "P4", TWO),
    _folding("no farewell before events are settled, or the process ends", "P7", ONE, faults=("lost message",)),
    _folding("a farewell creates no lease", "P6", tries=(2,), cap=2),
    _folding("fold what is settled", "P4", TWO, faults=("lost message",)),
    _folding("fold long after the last sync", "P6", tries=(2,), cap=2, faults=("late sync",)),
    _folding("a fold raises seq", "P3"),
    _folding("a folded lease leaves the counter", "P3"),
    _folding("a copy's lease that is not named leaves", "P3", faults=("failover",)),
    _folding("a duplicate unfolds its lease", "P7", faults=("sent again",)),
    _folding("the sum of what was drawn is compared", "P3", faults=("sent again",)),
    _folding(  # Without time, which the second guard needs, the world is ten times smaller.
        ("a repair names what is folded", "fold long after the last sync"),
        "P6",
        tries=(2,),
        cap=2,
        ticks=False,
        faults=RARE,
        most_faults=2,
    ),
)

TWO_DAYS = ((0, 0), (0, 1))

SMALL = (
    Config("one runner that may be restarted, any fault", RESTARTED, caps=(1,), faults=FAULTS),
    Config("one runner, a cap that is lowered and raised", ONE, cap=1, caps=(0, 1), faults=("set cap",), most_faults=2),
    Config("one runner, overlapping syncs", ONE, overlap=True, terms=Terms(2, 1), faults=("slow sync", "late sync")),
    Config(
        "one runner in two event loops", ONE, (3,), estimates=(1, 2), release=True, top_ups=2, faults=("lost sync",)
    ),
    Config("one runner, midnight", TWO_DAYS, days=(0, 1), midnight=2, terms=Terms(2, 0), faults=("lost sync", "crash")),
    Config("one runner, two agents", TWO_DAYS, days=(0, 0), cap=1, faults=("flush", "crash")),
    Config(
        "one runner, two workers", ONE, row=False, workers=2, publishes=2, faults=("duplicate message", "worker killed")
    ),
    Config("two runners, any fault", TWO, (1,), cap=1, caps=(0,), faults=FAULTS),
    Config(
        "two runners, publishes that overtake each other",
        TWO,
        (1,),
        caps=(1,),
        publishes=2,
        faults=("set cap", "flush"),
    ),
    Config("two runners, first opening", TWO, (1,), cap=1, row=False, open=False, publishes=2, faults=("flush",)),
    Config("two runners, overages and releases", TWO, (1,), cap=1, spare=(0, 1, -1), release=True),
    Config("one runner, long calls", ONE, (2,), estimates=(1, 2), parts=True, spare=(0, 1), faults=("lost sync",)),
    Config("two runners, recalls", TWO, (1,), estimates=(1, 2), spare=(1,), terms=Terms(2, 0)),
    Config(
        "one runner, two workers, lost publishes",
        ONE,
        workers=2,
        publishes=2,
        faults=("worker killed", "lost publish"),
        ticks=False,
    ),
    Config("one runner, a restored ledger", RESTARTED, faults=("restore",)),
    Config("farewells, any fault", RESTARTED, (1,), cap=1, farewells=True, faults=(*FAULTS, *RARE)),
    Config("farewells, two runners", TWO, (1,), cap=1, farewells=True),
    Config("farewells, an outbox", RESTARTED, (2,), cap=1, farewells=True, faults=("sent again",)),
)
"""Explored completely by `python -m tests.model`, as in `make soak`; the tests take the first states of each."""

FIRST_STATES = 20_000
"""How many the tests take. The missing guards that these worlds were seen to catch appear within 13,000 states."""


LARGE = (
    Config("2 runners x 2 leases x 2 holds, any fault", FOUR, caps=(1,), faults=FAULTS),
    Config("2 runners x 2 holds, any fault", TWO, caps=(1,), faults=FAULTS),
    Config("2 runners x 2 holds", TWO),
    Config("2 runners x 1 hold, any two faults", TWO, (1,), cap=1, caps=(0,), faults=FAULTS, most_faults=2),
    Config(
        "2 runners, two workers",
        TWO,
        (1,),
        row=False,
        workers=2,
        publishes=2,
        faults=("duplicate message", "worker killed"),
    ),
    Config("2 runners, recalls and slices", TWO, (1,), estimates=(1, 2), wish=1, spare=(0, 1), terms=Terms(2, 0)),
    Config("2 runners, lost publishes", TWO, (1,), cap=1, publishes=2, faults=("flush", "lost publish")),
    Config("farewells, restarted, any fault", RESTARTED, farewells=True, caps=(1,), faults=(*FAULTS, *RARE)),
    Config("farewells, a restored ledger", RESTARTED, farewells=True, faults=RARE, most_faults=2),
    Config(
        "farewells, publishes that overtake each other",
        RESTARTED,
        (1,),
        cap=1,
        farewells=True,
        publishes=2,
        faults=("flush", "failover", "sent again"),
        most_faults=2,
    ),
    Config("farewells, two runners, any fault", TWO, (1,), cap=1, farewells=True, faults=(*FAULTS, *RARE)),
    Config("2 runners, calls in parts", TWO, (1,), estimates=(2,), parts=True, spare=(0, 1)),
    Config(
        "1 runner in two event loops, overlapping syncs",
        ONE,
        (3,),
        estimates=(1, 2),
        overlap=True,
        top_ups=2,
        faults=("slow sync", "late sync", "lost sync"),
    ),
    Config(
        "1 runner, overlapping syncs, any two faults",
        ONE,
        spare=(0, 1),
        overlap=True,
        terms=Terms(2, 1),
        faults=FAULTS,
        most_faults=2,
    ),
)
"""For hours and gigabytes: `python -m tests.model --large`."""
