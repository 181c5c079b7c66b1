"""The wallet: what an inference runner embeds. Reserve before a call, finalize after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Unpack, cast, overload

from daycap.money import micros
from daycap.pricing.usage import Call
from daycap.protocol.counter import SyncReply
from daycap.settings import Settings
from daycap.signal_safe import Busy, Turn
from daycap.wallet.base import BaseWallet, too_many_concurrent
from daycap.wallet.hold import Hold
from daycap.wallet.metering import AgentOf, CostOf, P, T, agent_of, check_kind, note_cost
from daycap.wallet.readings import Reading
from daycap.wallet.top_up import Pause, Step, Steps
from daycap.wallet.wiring import Parts


class Wallet(BaseWallet[Hold]):
    """Keeps agents inside their daily caps. Threads may share one; make one for each process.

    Use `Wallet.from_env()`. A wallet starts its threads when it first has something for them to do, and `close`
    (or leaving it as a context manager) ends them. All amounts are int micros.
    """

    _hold_type = Hold

    def __init__(self, parts: Parts, settings: Settings | None = None) -> None:
        super().__init__(parts, settings)
        self._ready()

    def _begin(self) -> None:
        super()._begin()
        self._topping_up: dict[str, Turn] = {}

    @overload
    def reserve(self, agent: str, estimate_micros: int) -> Hold: ...
    @overload
    def reserve(self, agent: str, **call: Unpack[Call]) -> Hold: ...
    def reserve(self, agent: str, estimate_micros: int | None = None, **call: Any) -> Hold:
        """Hold the most that a call can cost before it is made: so many micros, or by its model and tokens.

        `wallet.reserve("agent-7", 50_000)`, or, with `daycap[prices]`, `wallet.reserve("agent-7", model="gpt-4o",
        input_tokens=1200, max_output_tokens=500)`: then the hold can be ended by the call's usage.

        Answers from memory, in microseconds, while this process has leased enough for the agent; else asks the
        counter, for at most `DAYCAP_REDIS_TIMEOUT_SECONDS` an exchange.

        Raises `CapExceeded` when it would pass the agent's cap of the day, `AgentPaused`, `UnknownAgent`,
        `NotYourAgent`, `InvalidAmount` or `InvalidInput`, and `BudgetUnavailable` when the check could not be made
        safely (`OutboxFull` when its event could not be kept). By a model also what `Prices.worst_case_micros` raises.
        """
        if call:
            priced = cast(Call, call)
            return self._priced(self.reserve(agent, self._worst_case(estimate_micros, priced)), priced)
        hold = self._from_memory(agent, estimate_micros)
        return hold if hold is not None else self._ask(agent, micros(estimate_micros))

    @overload
    def metered(
        self, agent: AgentOf, estimate_micros: int, *, cost: CostOf = None
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    @overload
    def metered(
        self, agent: AgentOf, *, cost: CostOf = None, **call: Unpack[Call]
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    def metered(
        self, agent: AgentOf, estimate_micros: int | None = None, *, cost: CostOf = None, **call: Any
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Decorate a function that makes one call: each time it reserves before, and is charged after.

        `agent` may be a function of the same arguments. The amount is as for `reserve`. What the call did cost, in
        micros, says `cost` by the function's result; without it the result's `usage`, where it is held by a model; and
        else it is all that is held, as after an exception. Raises what `reserve` and a hold's `used` raise, and
        `InvalidInput` for generators and coroutine functions.
        """
        amount = call if estimate_micros is None else {"estimate_micros": estimate_micros, **call}

        def decorate(function: Callable[P, T]) -> Callable[P, T]:
            check_kind(function, coroutine=False)

            @wraps(function)
            def call_it(*args: P.args, **kwargs: P.kwargs) -> T:
                with self.reserve(agent_of(agent, *args, **kwargs), **amount) as hold:
                    result = function(*args, **kwargs)
                    note_cost(hold, result, cost, call, lambda: self.prices)
                    return result

            return call_it

        return decorate

    def remaining(self, agent: str) -> Reading:
        """What could still be reserved for the agent today, this process's own free lease included.

        Read from Redis, else the ledger (cap less spent), else from what this process last heard. Raises
        `UnknownAgent`, and `BudgetUnavailable` when no tier can answer.
        """
        return self._readings.remaining(agent)

    def spent(self, agent: str) -> Reading:
        """What was settled of the agent's money today. Tiers and errors as in `remaining`."""
        return self._readings.spent(agent)

    def add_agent(self, agent: str, cap_micros: int) -> None:
        """Add the agent with its cap of micros a day. An agent that exists with this cap is left as it is.

        For a wallet whose ledger is a SQLite file of its own (no Redis, no broker). Raises `AgentExists` if the agent
        has another cap (`set_cap` changes it), `InvalidAmount`, `InvalidInput`, `LedgerUnavailable`, and
        `InvalidSetting` in other set-ups, where a worker keeps the agents: `daycap agent add`.
        """
        self._add_agent(agent, cap_micros)

    def set_cap(self, agent: str, cap_micros: int) -> None:
        """Change the agent's cap, from today on. Raises `UnknownAgent`, and otherwise what `add_agent` raises."""
        self._set_cap(agent, cap_micros)

    def verify_identity_binding(self, agent: str, anchor: str) -> bool:
        """Whether `anchor` is the agent's identity anchor now, says the ledger. False too where it has none.

        Raises `UnknownAgent`, `InvalidInput`, `LedgerUnavailable` when the ledger does not answer, and
        `InvalidSetting` when there is no `DAYCAP_LEDGER_URL` to ask.
        """
        return self._binding.verify(agent, anchor)

    def flush(self, timeout: float = 5) -> tuple[str, ...]:
        """Wait, at most `timeout` seconds, until the ledger has every event of this process.

        Those that it adopted from the outbox of one that died are counted in. Returns the reservation ids that
        were not known to be settled by then: empty is good.
        """
        return self._flush(timeout)

    def close(self, timeout: float = 5) -> tuple[str, ...]:
        """Flush, hand back what is leased and not held, end the threads. Returns what `flush` returns.

        There is no new hold from now on. Holds that are still live can be ended: their events are sent, and their
        money comes back when their lease expires. Closing twice does nothing.
        """
        return self._close(timeout)

    def __enter__(self) -> Wallet:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _asks_here(self) -> bool:
        return any(turn.mine() for turn in list(self._topping_up.values()))

    # --- inside -------------------------------------------------------------------------------------------

    def _ask(self, agent: str, estimate: int) -> Hold:
        """Drive a top-up: one at a time for each agent."""
        start_s = self._begin_to_ask(agent)
        self._sender.try_broker(self._settings.redis_timeout_seconds)

        def ask() -> Hold:
            with self._asking(agent, self._topping_up):
                self._binding.check(agent)  # Whoever has a lease in the book came by here.
                return self._drive(self._steps(agent, estimate, start_s), start_s)

        turn = self._topping_up.setdefault(agent, Turn())
        try:
            return turn.take(ask, self._settings.open_timeout_seconds)
        except Busy:
            raise too_many_concurrent(agent) from None

    def _drive(self, steps: Steps[Hold], start_s: float) -> Hold:
        answer: SyncReply | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            try:
                answer = self._take(step, start_s)
            except BaseException as error:
                steps.throw(error)  # What was taken out of the book for the question is put back, and it is raised.

    def _take(self, step: Step, start_s: float) -> SyncReply | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        with self._exchanging(start_s):
            return self._counter.sync([step.request])[0]
