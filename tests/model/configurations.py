"""The configurations to explore, and for each guard a small one that shows what breaks without it."""

from __future__ import annotations

from typing import NamedTuple

from tests.model.counter import Terms
from tests.model.protocol import Config

ONE, TWO = ((0, 0),), ((0, 0), (1, 0))


FOUR = ((0, 0), (0, 0), (1, 0), (1, 0))
ALL_FAULTS = tuple(
    (kind, 1)
    for kind in (
        "crash",
        "lost sync",
        "slow sync",
        "late sync",
        "lost message",
        "duplicate message",
        "lost publish",
        "worker killed",
        "flush",
        "failover",
        "set cap",
        "pause",
    )
)


class Mutant(NamedTuple):
    """A guard, the promise that breaks without it, and where."""

    guard: str
    breaks: str
    config: Config


def _mutant(guard: str, breaks: str, **changes: object) -> Mutant:
    config = Config(name=guard, **changes)  # type: ignore[arg-type]
    return Mutant(guard, breaks, config._replace(terms=config.terms._replace(without=guard)))


BASE = (
    Config("one runner, every fault", ONE, ((2, 2),), caps=(1,), faults=ALL_FAULTS, most_faults=1),
    Config(
        "one runner, restarted, two faults", ((0, 0), (0, 0)), ((2, 2),), caps=(1,), faults=ALL_FAULTS, most_faults=2
    ),
    Config("two runners, no fault", TWO, ((2, 2),), spare=(0, 1)),
    Config("two runners, one hold, every fault", TWO, ((1, 1),), cap=1, faults=ALL_FAULTS, most_faults=1),
    Config("two runners, one hold, two faults", TWO, ((1, 2),), cap=1, faults=ALL_FAULTS, most_faults=2),
    Config("late publishes", TWO, ((1, 1),), publishes=2, caps=(1, 3), faults=(("set cap", 1), ("flush", 1))),
    Config(
        "overlapping syncs",
        ONE,
        ((2, 2),),
        spare=(0, 1),
        overlap=True,
        terms=Terms(2, 1),
        faults=(("late sync", 1), ("slow sync", 1)),
    ),
    Config("a cap that is lowered and raised", ONE, ((2, 3),), cap=1, caps=(0, 1), faults=(("set cap", 2),)),
    Config(
        "two workers",
        TWO,
        ((1, 1),),
        workers=2,
        publishes=2,
        cap=1,
        faults=(("duplicate message", 1), ("worker killed", 1)),
    ),
    Config("first opening", TWO, ((1, 2),), opened=(0, 0), cap=1, publishes=2, faults=(("flush", 1),)),
    Config(
        "midnight",
        ((0, 0), (0, 1)),
        ((2, 3),),
        days=(0, 1),
        midnight=2,
        terms=Terms(2, 0),
        faults=(("lost sync", 1), ("crash", 1)),
    ),
    Config("two agents", ((0, 0), (0, 1)), ((2, 2),), days=(0, 0), cap=1, faults=(("flush", 1), ("crash", 1))),
    Config("overage and release", TWO, ((1, 2),), spare=(0, 1, -1), release=True, cap=1),
    Config("recall and slices", TWO, ((1, 2),), estimates=(1, 2), wish=1, spare=(0, 1), terms=Terms(2, 0)),
    Config("target: 2 runners x 2 leases x 2 holds, no fault", FOUR, ((2, 2),)),
    Config(
        "target: 2 runners x 2 leases x 2 holds, any one fault",
        FOUR,
        ((2, 2),),
        caps=(1,),
        faults=ALL_FAULTS,
        most_faults=1,
    ),
)

MUTANTS = (
    _mutant(
        "what was drawn counts under a lowered cap",
        "P4",
        leases=ONE,
        cap=1,
        caps=(0, 1),
        tries=((2, 3),),
        ticks=False,
        faults=(("set cap", 2),),
    ),
    _mutant(
        "older seq ignored",
        "P3",
        leases=ONE,
        cap=2,
        tries=((3, 4),),
        publishes=2,
        ticks=False,
        faults=(("lost publish", 1),),
    ),
    _mutant("put back accepted", "P4", leases=TWO, cap=1, tries=((1, 2),), faults=(("flush", 1),)),
    _mutant("fence", "P4", leases=TWO, cap=1, tries=((1, 2),), faults=(("flush", 1),)),
    _mutant("fence and expire wait for the queue", "P4", leases=TWO, cap=1, tries=((1, 2),), faults=(("crash", 1),)),
    _mutant("run id compared", "P4", leases=TWO, cap=1, tries=((1, 2),), faults=(("failover", 1),)),
    _mutant("expiry decided inside the script", "P4", leases=TWO, cap=1, tries=((1, 2),)),
    _mutant(
        "local deadline",
        "P4",
        leases=TWO,
        cap=1,
        tries=((2, 3),),
        spare=(1,),
    ),
    _mutant(
        "local <= server's deadline",
        "P4",
        leases=TWO,
        cap=1,
        tries=((1, 1),),
        terms=Terms(3, 2),
        faults=(("slow sync", 1),),
    ),
    _mutant(
        "a late reply thrown away",
        "P4",
        leases=TWO,
        cap=1,
        tries=((2, 2), (1, 1)),
        spare=(1,),
        overlap=True,
        faults=(("slow sync", 1),),
    ),
    _mutant(
        "free money deducted before it is sent",
        "P4",
        leases=TWO,
        cap=1,
        tries=((2, 3),),
        spare=(1,),
    ),
    _mutant("finalize frees only held - drawn", "P4", leases=ONE, cap=1, tries=((2, 3),), ticks=False),
    _mutant("granted is absolute", "P6", leases=ONE, cap=1, tries=((2, 3),), ticks=False, faults=(("lost sync", 1),)),
    _mutant(
        "publish carries every lease of the day",
        "P6",
        leases=((0, 0), (0, 0)),
        cap=3,
        tries=((3, 3),),
        ticks=False,
        faults=(("crash", 1), ("lost publish", 1)),
    ),
    _mutant("outstanding clamped at 0", "P", leases=TWO, cap=2, tries=((2, 3),)),
    _mutant(
        "settled-already check",
        "P2",
        leases=ONE,
        cap=2,
        tries=((1, 2),),
        ticks=False,
        faults=(("duplicate message", 1),),
    ),
    _mutant("SQL row lock", "P1", leases=ONE, cap=1, tries=((1, 2),), ticks=False, workers=2, publishes=2),
    _mutant(
        "day row inserted before the lock",
        "P1",
        leases=ONE,
        opened=(0, 1),
        cap=1,
        tries=((1, 2),),
        ticks=False,
        workers=2,
        publishes=2,
    ),
    _mutant("charge clamped", "P1", leases=ONE, cap=1, tries=((1, 2),), spare=(-1,), ticks=False),
    _mutant(
        "a cap change raises seq",
        "P3",
        leases=ONE,
        cap=1,
        caps=(2,),
        tries=((0, 1),),
        ticks=False,
        faults=(("set cap", 1),),
    ),
    _mutant(
        "local deadline ends with the day",
        "P9",
        leases=((0, 0),),
        days=(0,),
        midnight=2,
        tries=((2, 3),),
        spare=(1,),
        terms=Terms(2, 0),
    ),
    _mutant(
        "first is a time limit",
        "P4",
        leases=TWO,
        opened=(0, 0),
        cap=1,
        tries=((1, 2),),
        publishes=2,
        faults=(("flush", 1),),
    ),
    _mutant(
        "first ends before a fence is lifted",
        "P4",
        leases=TWO,
        opened=(0, 0),
        cap=1,
        tries=((1, 2),),
        publishes=2,
        faults=(("flush", 1),),
    ),
    _mutant("settled up to the first gap", "P7", leases=ONE, cap=2, tries=((2, 3),), faults=(("lost message", 1),)),
    _mutant(
        "what an old copy had lent is forgotten",
        "P4",
        leases=TWO,
        cap=1,
        tries=((1, 2),),
        faults=(
            ("slow sync", 1),
            ("failover", 1),
        ),
    ),
    _mutant(
        "what came free of a dead lease is handed back",
        "P4",
        leases=TWO,
        cap=1,
        tries=((2, 2), (1, 1)),
        spare=(1,),
        faults=(("slow sync", 1),),
    ),
    _mutant(
        "recalled money is handed back",
        "P6",
        leases=TWO,
        cap=2,
        tries=((1, 1),),
        estimates=(1, 2),
        spare=(1,),
        terms=Terms(2, 0),
    ),
)

NOT_NEEDED = (
    _mutant("drawn never travels without spent of the same snapshot", "", leases=ONE, cap=1, publishes=2),
    _mutant("runner never reports drawn", "", leases=ONE, cap=1, tries=((2, 3),)),
)
"""Guards that nothing breaks without since the counter lends by max(spent, drawn); the code keeps them."""

IN_CI = {"one runner, every fault", "a cap that is lowered and raised"}
"""What is explored completely with every test run; the others take minutes or hours: python -m tests.model."""
