"""A user's program: children of multiprocessing that spend, started in each way there is.

`python -m tests.integration.processes.programs.children METHOD FACE SETUP` prints, as JSON, the exit codes of all
children by agent. `SETUP` is `redis`, `ledger` (no Redis), or `caps` (in code; neither Redis nor ledger). A wallet
is the child's own, inherited from the parent by the fork, or given as a pickled argument.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from daycap import AsyncWallet, Wallet

CHILDREN, CALLS, COST = 3, 4, 1_000
FACES: dict[str, Any] = {"threads": Wallet, "loop": AsyncWallet}
AGENTS = [
    "parent",
    *(f"{way}-{whose}" for way in ("process", "pool", "executor") for whose in ("own", "inherited", "given")),
    "process-thread",
]

of_parent: Any = None


def make(face: str, setup: str) -> Any:
    caps = dict.fromkeys(AGENTS, 100_000) if setup == "caps" else None
    return FACES[face].from_env(caps=caps)


def spend(wallet: Any, agent: str) -> int:
    """Of `CALLS` calls; the process that made them."""
    if isinstance(wallet, AsyncWallet):
        asyncio.run(_spend_in_loop(wallet, agent))
    else:
        for _ in range(CALLS):
            wallet.reserve(agent, 2 * COST).finalize(COST)
    return os.getpid()


async def _spend_in_loop(wallet: AsyncWallet, agent: str) -> None:
    for _ in range(CALLS):
        with await wallet.reserve(agent, 2 * COST) as hold:
            hold.actual = COST


def own(agent: str, *how: str) -> int:
    return spend(make(*how), agent)


def in_thread(agent: str, *how: str) -> None:
    """It begins to spend when the child's own function has returned."""

    def work() -> None:
        threading.main_thread().join(0.2)
        own(agent, *how)

    threading.Thread(target=work).start()


def inherited(agent: str) -> int:
    return spend(of_parent, agent)


def in_processes(context: Any, target: Callable[..., object], agent: str, *args: Any) -> list[int]:
    children = [context.Process(target=target, args=(agent, *args)) for _ in range(CHILDREN)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def in_pool(context: Any, target: Callable[..., int], agent: str, *args: Any) -> list[int]:
    pool = context.Pool(CHILDREN, maxtasksperchild=1)
    answers = [pool.apply_async(target, (agent, *args)) for _ in range(CHILDREN)]
    pool.close()
    pool.join()
    return [0 * answer.get() for answer in answers]


def in_executor(context: Any, target: Callable[..., int], agent: str, *args: Any) -> list[int]:
    with ProcessPoolExecutor(CHILDREN, mp_context=context) as executor:
        answers = [executor.submit(target, agent, *args) for _ in range(CHILDREN)]
        return [0 * answer.result() for answer in answers]


def given(agent: str, wallet: Any) -> int:
    return spend(wallet, agent)


START = {"process": in_processes, "pool": in_pool, "executor": in_executor}
TARGET: dict[str, Any] = {"own": own, "thread": in_thread, "inherited": inherited, "given": given}
KINDS = {
    "fork": [f"{way}-{whose}" for way in START for whose in ("own", "inherited")] + ["pool-given", "process-thread"],
    "forkserver": ["process-own", "pool-given", "executor-own"],
    "spawn": ["process-given", "executor-own"],  # Each of these children takes a second to import all.
}


def main(method: str, face: str, setup: str) -> None:
    global of_parent  # noqa: PLW0603
    of_parent = make(face, setup)
    spend(of_parent, "parent")
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["daycap"])
    ended = {}
    for kind in KINDS[method]:
        way, whose = kind.split("-")
        if whose == "given" and setup != "redis":
            continue  # Refused; see test_pickled.
        args = {"own": (face, setup), "thread": (face, setup), "inherited": (), "given": (of_parent,)}[whose]
        ended[kind] = START[way](context, TARGET[whose], kind, *args)
    print(json.dumps(ended))


if __name__ == "__main__":
    main(*sys.argv[1:])
