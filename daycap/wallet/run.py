"""A run: one task with a cap of its own, whichever agents and processes make its calls."""

from __future__ import annotations

import secrets
from typing import Any, Generic, Self

from daycap.errors import InvalidInput, RunEnded
from daycap.formats import shown
from daycap.money import micros
from daycap.protocol.labels import RUN, call_labels
from daycap.protocol.plan import MOST_BUDGETS
from daycap.protocol.runs import LONGEST_MS, new_run, read_run
from daycap.protocol.runs import Run as Terms
from daycap.wallet.hold import H

_HOUR_MS = 3_600_000


class Run(Generic[H]):
    """A cap for the calls of one task, besides every other cap that they count in. Create it with `Wallet.run`.

    Use it as a context manager: at the end of the block it makes no more holds, nor do the runs inside it; live ones
    can still be ended. What it has left was never set aside from anybody.
    """

    __slots__ = ("_chain", "_wallet", "agent", "shared")

    def __init__(self, wallet: Any, agent: str | None, chain: tuple[Terms, ...], *, shared: bool) -> None:
        self._wallet = wallet
        self._chain = chain
        self.agent = agent
        """Whose calls these are, unless a call names another agent."""
        self.shared = shared
        """Whether other processes can join it."""
        if len(chain) >= MOST_BUDGETS:  # Each call counts in its agent's own budget too.
            raise InvalidInput(
                f"runs form at most {MOST_BUDGETS - 1} levels: a call counts in at most {MOST_BUDGETS} budgets"
            )
        wallet._book.exchanges.begin_run(chain[0], chain[1:], self, local=not shared)

    @property
    def id(self) -> str:
        """What another process joins it by, with the runs that it is part of. Raises `InvalidInput` if not `shared`."""
        if not self.shared:
            raise InvalidInput("only this process knows the run; to join it elsewhere create it with shared=True")
        return ",".join(each.id for each in self._chain)

    @property
    def cap_micros(self) -> int:
        """What all calls of the run may cost."""
        return self._chain[0].cap_micros

    @property
    def labels(self) -> dict[str, str]:
        """The label of its calls, for whatever reserves by itself: `wallet.metered(..., labels=run.labels)`."""
        return {RUN: self._chain[0].id}

    def reserve(
        self, estimate_micros: int | None = None, *, agent: str | None = None, labels: Any = None, **call: Any
    ) -> Any:
        """Reserve for a call of this run, as `Wallet.reserve` does: by default for the run's agent.

        With an `AsyncWallet`, await it. `CapExceeded.full` names the run where it is full. Raises `RunEnded` after its
        end.
        """
        self._must_go_on()
        whose = agent if agent is not None else self.agent
        if whose is None:
            raise InvalidInput("say whose call it is: agent=")
        its = dict(call_labels(labels)) if labels is not None else {}
        return self._wallet.reserve(whose, estimate_micros, labels={**its, **self.labels}, **call)

    def run(self, cap_micros: int, *, agent: str | None = None) -> Run[H]:
        """Begin a run inside this one, which ends no later: its calls count in both.

        Raises `RunEnded` after its end, and `InvalidInput` at more than 15 levels.
        """
        self._must_go_on()
        inner = new_run(micros(cap_micros), self._chain[0].end_ms, secrets.token_bytes(10))
        return Run(self._wallet, agent if agent is not None else self.agent, (inner, *self._chain), shared=self.shared)

    def end(self) -> None:
        """Make no more holds, also of the runs inside it. Ending twice does nothing.

        If this process joined the run several times, the calls of the others go on.
        """
        self._wallet._book.exchanges.end_run(self._chain[0], self)

    def _must_go_on(self) -> None:
        if not self._wallet._book.exchanges.runs.has(self._chain[0], self):
            raise RunEnded(f"run {self._chain[0].id} has ended, or belongs to the parent of this forked process")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"<Run {self._chain[0].id} agent={self.agent} cap_micros={self.cap_micros} shared={self.shared}>"


def begin(wallet: Any, agent: str, cap_micros: int, hours: object, *, shared: bool) -> Run[Any]:
    """See `Wallet.run`."""
    if not isinstance(hours, int | float) or not 1 <= hours * _HOUR_MS <= LONGEST_MS:
        raise InvalidInput(f"a run lasts at most {LONGEST_MS // _HOUR_MS} hours, not {shown(hours, 40)}")
    end_ms = wallet._book.clock.now_ms() + int(hours * _HOUR_MS)
    return Run(wallet, agent, (new_run(micros(cap_micros), end_ms, secrets.token_bytes(10)),), shared=shared)


def join(wallet: Any, run_id: object, agent: str | None) -> Run[Any]:
    """See `Wallet.join_run`."""
    if not run_id:
        raise InvalidInput("there is no run to join: DAYCAP_RUN is not set")
    if not isinstance(run_id, str):
        raise InvalidInput(f"not the id of a run: {shown(run_id, 80)}")
    chain = tuple(read_run(each) for each in run_id.split(",", MOST_BUDGETS))
    if len(set(chain)) < len(chain):
        raise InvalidInput(f"a run is not part of itself: {shown(run_id, 80)}")
    if max(run.end_ms for run in chain) > wallet._book.clock.now_ms() + LONGEST_MS:
        raise InvalidInput(f"a run lasts at most {LONGEST_MS // _HOUR_MS} hours: {shown(run_id, 80)}")
    if not wallet._settings.redis_url:
        raise InvalidInput("joining a run needs DAYCAP_REDIS_URL: this wallet's counter is in memory")
    return Run(wallet, agent, chain, shared=True)
