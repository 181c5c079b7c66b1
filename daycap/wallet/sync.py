"""The wallet that an inference runner embeds: reserve before a call, finalize after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import Any, Unpack, cast, overload

from daycap.money import micros
from daycap.periods import PeriodRule
from daycap.pricing.usage import PricedCall
from daycap.protocol.labels import Labels, call_labels
from daycap.settings import Settings
from daycap.signal_safe import Busy, Turn
from daycap.wallet.base import BaseWallet, too_many_concurrent
from daycap.wallet.hold import Hold
from daycap.wallet.metering import AgentOf, CostOf, LabelsOf, P, T, agent_of, check_kind, note_cost, with_model
from daycap.wallet.readings import Reading
from daycap.wallet.top_up import Answered, Pause, ReadPlan, Step, Steps
from daycap.wallet.wiring import Parts


class Wallet(BaseWallet[Hold]):
    """Keeps agents inside their daily caps. Create one per process; threads may share it.

    Use `Wallet.from_env()`. A wallet starts its threads on first use; `close`, or leaving it as a context manager,
    ends them. All amounts are int micros.
    """

    _hold_type = Hold

    def __init__(self, parts: Parts, settings: Settings | None = None) -> None:
        super().__init__(parts, settings)
        self._ready()

    def _begin(self) -> None:
        super()._begin()
        self._topping_up: dict[str, Turn] = {}

    @overload
    def reserve(self, agent: str, estimate_micros: int, *, labels: LabelsOf = None) -> Hold: ...
    @overload
    def reserve(self, agent: str, *, labels: LabelsOf = None, **call: Unpack[PricedCall]) -> Hold: ...
    def reserve(self, agent: str, estimate_micros: int | None = None, *, labels: LabelsOf = None, **call: Any) -> Hold:
        """Hold the most that a call can cost, before the call: an amount in micros, or a model and its tokens.

        `wallet.reserve("agent-7", 50_000)` or, with `daycap[prices]`, `wallet.reserve("agent-7", model="gpt-4o",
        input_tokens=1200, max_output_tokens=500)`. With a model, the hold can be finalized with the call's usage.

        The call counts in the agent's daily cap and in every other budget that applies: it fits all of them, or it is
        refused. `labels` say what kind of call it is (`{"tool": "search"}`), for budgets that only some calls count in;
        `model` is a label by itself.

        Answers from memory, in microseconds, while this process has leased enough for the agent. Otherwise it asks
        the counter; each exchange takes at most `DAYCAP_REDIS_TIMEOUT_SECONDS`.

        Raises `CapExceeded`, which names every budget that is full, if the estimate would exceed one; `AgentPaused`,
        `UnknownAgent`, `NotYourAgent`, `InvalidAmount` or `InvalidInput`; and `BudgetUnavailable` if the budget could
        not be checked safely (`OutboxFull` if the event could not be kept). With a model, also raises what
        `Prices.worst_case_micros` raises.
        """
        if call:
            priced = cast(PricedCall, call)
            worst_case = self._worst_case(estimate_micros, priced)
            return self._priced(self.reserve(agent, worst_case, labels=with_model(labels, call)), priced)
        its = () if labels is None else call_labels(labels)
        hold = self._from_memory(agent, estimate_micros, its)
        return hold if hold is not None else self._ask(agent, micros(estimate_micros), its)

    @overload
    def metered(
        self, agent: AgentOf, estimate_micros: int, *, cost: CostOf = None, labels: LabelsOf = None
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    @overload
    def metered(
        self, agent: AgentOf, *, cost: CostOf = None, labels: LabelsOf = None, **call: Unpack[PricedCall]
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    def metered(
        self,
        agent: AgentOf,
        estimate_micros: int | None = None,
        *,
        cost: CostOf = None,
        labels: LabelsOf = None,
        **call: Any,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Decorate a function that makes one call: reserve before each call, finalize after it.

        `agent` may be a function of the same arguments. Pass the amount as for `reserve`. `cost` computes the actual
        cost in micros from the function's result. Without `cost`, a reservation by model is charged by the result's
        `usage`, and any other, like a call that raised, is charged the whole hold. Raises what `reserve` and
        `Hold.used` raise, and `InvalidInput` for generators and coroutine functions.
        """
        amount = call if estimate_micros is None else {"estimate_micros": estimate_micros, **call}

        def decorate(function: Callable[P, T]) -> Callable[P, T]:
            check_kind(function, coroutine=False)

            @wraps(function)
            def call_it(*args: P.args, **kwargs: P.kwargs) -> T:
                with self.reserve(agent_of(agent, *args, **kwargs), labels=labels, **amount) as hold:
                    result = function(*args, **kwargs)
                    note_cost(hold, result, cost, call, lambda: self.prices)
                    return result

            return call_it

        return decorate

    def remaining(self, agent: str) -> Reading:
        """Return what the agent's daily cap still allows, including this process's own free lease.

        Other budgets may allow less.

        Reads Redis, else the ledger (cap minus spent), else what this process last heard. Raises `UnknownAgent`, and
        `BudgetUnavailable` if no tier can answer.
        """
        return self._readings.remaining(agent)

    def spent(self, agent: str) -> Reading:
        """Return what was settled for the agent today. Tiers and errors as in `remaining`."""
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

    def add_group(self, name: str, agents: Collection[str] = (), groups: Collection[str] = ()) -> None:
        """Add a group of agents and other groups. A group that exists with these members is left as it is.

        Raises `GroupExists` if it has others, `UnknownAgent`, `UnknownGroup`, `InvalidInput` for a cycle of groups, and
        otherwise what `add_agent` raises.
        """
        self._add_group(name, agents, groups)

    def add_budget(
        self,
        name: str,
        cap_micros: int,
        *,
        agent: str | None = None,
        group: str | None = None,
        period: str = "day",
        zone: str = "UTC",
        hour: int = 0,
        weekday: int = 1,
        monthday: int = 1,
        labels: Mapping[str, str | Sequence[str]] | None = None,
        mode: str = "enforce",
    ) -> None:
        """Add a budget besides the agents' own caps. One that exists with this cap, scope and period is left as it is.

        It caps what the calls of `agent`, or of the members of `group`, may cost in one `period`: `hour`, `day`,
        `week`, `month`, `year`, or `once`, which never ends. `labels` narrows it to calls that have one of the values
        for each key; `*` in a value stands for any text. With mode `watch` it counts but refuses nothing.

        A period begins in the IANA time zone `zone` at `hour`, a week on `weekday` (1 is Monday), a month on
        `monthday`. Raises `BudgetExists` if the budget exists and differs, `UnknownAgent`, `UnknownGroup`,
        `InvalidInput`, also if a call could count in more than 16 budgets, and otherwise what `add_agent` raises.
        """
        rule = PeriodRule(period, zone, hour, weekday, monthday)
        self._add_budget(name, cap_micros, rule, agent, group, labels, mode)

    def verify_identity_binding(self, agent: str, anchor: str) -> bool:
        """Return whether the ledger has `anchor` as the agent's identity anchor. False if the agent has none.

        Raises `UnknownAgent`, `InvalidInput`, `LedgerUnavailable` if the ledger does not answer, and
        `InvalidSetting` without `DAYCAP_LEDGER_URL`.
        """
        return self._binding.verify(agent, anchor)

    def flush(self, timeout: float = 5) -> tuple[str, ...]:
        """Wait at most `timeout` seconds until the ledger has every event of this process.

        This includes events adopted from the outboxes of dead processes. Returns the reservation ids that are not
        known to be settled; empty means that all are.
        """
        return self._flush(timeout)

    def close(self, timeout: float = 5) -> tuple[str, ...]:
        """Flush, hand back free leased money, and end the threads. Returns what `flush` returns.

        A closed wallet makes no new holds. Live holds can still be ended: their events are sent, and their money is
        freed when their lease expires. Closing twice does nothing.
        """
        return self._close(timeout)

    def __enter__(self) -> Wallet:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _asks_here(self) -> bool:
        return any(turn.mine() for turn in list(self._topping_up.values()))

    # --- inside -------------------------------------------------------------------------------------------

    def _ask(self, agent: str, estimate: int, labels: Labels) -> Hold:
        """Run a top-up, one at a time per agent."""
        start_s = self._begin_to_ask(agent)
        self._sender.try_broker(self._settings.redis_timeout_seconds)

        def ask() -> Hold:
            with self._asking(agent, self._topping_up):
                self._binding.check(agent)  # Every lease in the book passed this check.
                return self._drive(self._steps(agent, estimate, labels, start_s), start_s)

        turn = self._topping_up.setdefault(agent, Turn())
        try:
            return turn.take(ask, self._settings.open_timeout_seconds)
        except Busy:
            raise too_many_concurrent(agent) from None

    def _drive(self, steps: Steps[Hold], start_s: float) -> Hold:
        answer: Answered = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            try:
                answer = self._take(step, start_s)
            except BaseException as error:
                steps.throw(error)  # Puts back what the question earmarked, and re-raises.

    def _take(self, step: Step, start_s: float) -> Answered:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        with self._exchanging(start_s):
            if isinstance(step, ReadPlan):
                return self._counter.read_plan(*step)
            return self._counter.sync([each.request for each in step.all])
