"""A run: one task with a cap of its own, whichever agents and processes make its calls."""

from __future__ import annotations

import secrets
from typing import Any, Generic, Self

from daycap.errors import BudgetUnavailable, InvalidInput
from daycap.money import micros
from daycap.protocol.labels import RUN
from daycap.protocol.runs import LONGEST_MS, new_run, read_run
from daycap.protocol.runs import Run as Terms
from daycap.wallet.hold import H

_HOUR_MS = 3_600_000


class Run(Generic[H]):
    """A cap for the calls of one task, besides every other cap that they count in. Create it with `Wallet.run`.

    Use it as a context manager: at the end of the block it makes no more holds; live ones can still be ended. What it
    has left was never set aside from anybody.
    """

    __slots__ = ("_chain", "_wallet", "agent", "shared")

    def __init__(self, wallet: Any, agent: str | None, chain: tuple[Terms, ...], *, shared: bool) -> None:
        self._wallet = wallet
        self._chain = chain
        self.agent = agent
        """Whose calls these are, unless a call names another agent."""
        self.shared = shared
        """Whether other processes can join it."""
        wallet._book.exchanges.begin_run(chain[0], chain[1:], local=not shared)

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
        whose = agent if agent is not None else self.agent
        if whose is None:
            raise InvalidInput("say whose call it is: agent=")
        return self._wallet.reserve(whose, estimate_micros, labels={**(labels or {}), **self.labels}, **call)

    def run(self, cap_micros: int, *, agent: str | None = None) -> Run[H]:
        """Begin a run inside this one, which ends no later: its calls count in both."""
        inner = new_run(micros(cap_micros), self._chain[0].end_ms, secrets.token_bytes(10))
        return Run(self._wallet, agent if agent is not None else self.agent, (inner, *self._chain), shared=self.shared)

    def end(self) -> None:
        """Make no more holds. Ending twice does nothing."""
        self._wallet._book.exchanges.end_run(self._chain[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"<Run {self._chain[0].id} agent={self.agent} cap_micros={self.cap_micros} shared={self.shared}>"


def begin(wallet: Any, agent: str, cap_micros: int, hours: float, *, shared: bool) -> Run[Any]:
    """See `Wallet.run`."""
    if not 0 < hours * _HOUR_MS <= LONGEST_MS:
        raise InvalidInput(f"a run lasts at most {LONGEST_MS // _HOUR_MS} hours, not {hours!r:.40}")
    end_ms = wallet._book.clock.now_ms() + int(hours * _HOUR_MS)
    return Run(wallet, agent, (new_run(micros(cap_micros), end_ms, secrets.token_bytes(10)),), shared=shared)


def join(wallet: Any, run_id: str, agent: str | None) -> Run[Any]:
    """See `Wallet.join_run`."""
    if not run_id:
        raise BudgetUnavailable("there is no run to join: DAYCAP_RUN is not set")
    chain = tuple(read_run(each) for each in run_id.split(","))
    return Run(wallet, agent, chain, shared=True)
