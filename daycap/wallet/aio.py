"""The wallet for asyncio programs, over the same book, threads and protocol as `Wallet`."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Unpack, cast, overload

from daycap.counters.per_loop import PerLoop
from daycap.money import micros
from daycap.periods import PeriodRule
from daycap.pricing.usage import PricedCall
from daycap.protocol.labels import Labels, call_labels
from daycap.settings import Settings
from daycap.wallet.base import BaseWallet, too_many_concurrent
from daycap.wallet.hold import AsyncHold
from daycap.wallet.metering import AgentOf, CostOf, LabelsOf, P, T, agent_of, check_kind, note_cost, with_model
from daycap.wallet.readings import Reading
from daycap.wallet.top_up import Answered, Pause, ReadPlan, Step, Steps
from daycap.wallet.wiring import Parts


class AsyncWallet(BaseWallet[AsyncHold]):
    """`Wallet` with `await`: the same methods, amounts and errors. Create one per process; tasks may share it, even
    across event loops in several threads.

    Use `AsyncWallet.from_env()` as a context manager: `async with`. It never blocks the event loop: a reserve served
    from memory does not even yield, any other awaits Redis, and the wallet's threads do the rest. A hold's `finalize`
    and `release` never wait and are plain calls, so they work while a task is being cancelled.
    `with await wallet.reserve(...) as hold:` always finalizes.
    """

    _hold_type = AsyncHold

    def __init__(self, parts: Parts, settings: Settings | None = None) -> None:
        super().__init__(parts, settings)
        self._ready()

    def _begin(self) -> None:
        super()._begin()
        self._topping_up: PerLoop[dict[str, asyncio.Lock]] = PerLoop(dict)

    def _forget(self) -> None:
        super()._forget()
        if self._in_loop is not None:
            self._in_loop.forget()

    @overload
    async def reserve(self, agent: str, estimate_micros: int, *, labels: LabelsOf = None) -> AsyncHold: ...
    @overload
    async def reserve(self, agent: str, *, labels: LabelsOf = None, **call: Unpack[PricedCall]) -> AsyncHold: ...
    async def reserve(
        self, agent: str, estimate_micros: int | None = None, *, labels: LabelsOf = None, **call: Any
    ) -> AsyncHold:
        """Reserve as `Wallet.reserve` does. If the task is cancelled while it waits, nothing is held."""
        if call:
            priced = cast(PricedCall, call)
            if self._prices is None:  # Loading them takes half a second.
                await _in_thread(lambda: self.prices)
            worst_case = self._worst_case(estimate_micros, priced)
            return self._priced(await self.reserve(agent, worst_case, labels=with_model(labels, call)), priced)
        its = () if labels is None else call_labels(labels)
        hold = self._from_memory(agent, estimate_micros, its)
        return hold if hold is not None else await self._ask(agent, micros(estimate_micros), its)

    @overload
    def metered(
        self, agent: AgentOf, estimate_micros: int, *, cost: CostOf = None, labels: LabelsOf = None
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]: ...
    @overload
    def metered(
        self, agent: AgentOf, *, cost: CostOf = None, labels: LabelsOf = None, **call: Unpack[PricedCall]
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]: ...
    def metered(
        self,
        agent: AgentOf,
        estimate_micros: int | None = None,
        *,
        cost: CostOf = None,
        labels: LabelsOf = None,
        **call: Any,
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
        """Decorate an `async def` as `Wallet.metered` does. A cancelled call is charged the whole hold."""
        amount = call if estimate_micros is None else {"estimate_micros": estimate_micros, **call}

        def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
            check_kind(function, coroutine=True)

            @wraps(function)
            async def call_it(*args: P.args, **kwargs: P.kwargs) -> T:
                with await self.reserve(agent_of(agent, *args, **kwargs), labels=labels, **amount) as hold:
                    result = await function(*args, **kwargs)
                    note_cost(hold, result, cost, call, lambda: self.prices)
                    return result

            return call_it

        return decorate

    async def remaining(self, agent: str) -> Reading:
        """See `Wallet.remaining`."""
        return await _in_thread(self._readings.remaining, agent)

    async def spent(self, agent: str) -> Reading:
        """See `Wallet.spent`."""
        return await _in_thread(self._readings.spent, agent)

    async def add_agent(self, agent: str, cap_micros: int) -> None:
        """See `Wallet.add_agent`."""
        await _in_thread(self._add_agent, agent, cap_micros)

    async def set_cap(self, agent: str, cap_micros: int) -> None:
        """See `Wallet.set_cap`."""
        await _in_thread(self._set_cap, agent, cap_micros)

    async def add_group(self, name: str, agents: Collection[str] = (), groups: Collection[str] = ()) -> None:
        """See `Wallet.add_group`."""
        await _in_thread(self._add_group, name, agents, groups)

    async def add_budget(
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
        """See `Wallet.add_budget`."""
        rule = PeriodRule(period, zone, hour, weekday, monthday)
        await _in_thread(self._add_budget, name, cap_micros, rule, agent, group, labels, mode)

    async def verify_identity_binding(self, agent: str, anchor: str) -> bool:
        """See `Wallet.verify_identity_binding`."""
        return await _in_thread(self._binding.verify, agent, anchor)

    async def flush(self, timeout: float = 5) -> tuple[str, ...]:
        """See `Wallet.flush`."""
        return await _in_thread(self._flush, timeout)

    async def close(self, timeout: float = 5) -> tuple[str, ...]:
        """See `Wallet.close`."""
        unsettled = await _in_thread(self._close, timeout)
        if self._in_loop is not None:
            await self._in_loop.close()
        return unsettled

    async def __aenter__(self) -> AsyncWallet:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # --- inside -------------------------------------------------------------------------------------------

    async def _ask(self, agent: str, estimate: int, labels: Labels) -> AsyncHold:
        """Run a top-up, one at a time per agent and event loop."""
        start_s = self._begin_to_ask(agent)
        if not self._sender.tried.is_set():
            await _in_thread(self._sender.try_broker, self._settings.redis_timeout_seconds)
        locks = self._topping_up.get()
        lock = locks.setdefault(agent, asyncio.Lock())
        try:
            async with asyncio.timeout(self._settings.open_timeout_seconds):
                await lock.acquire()
        except TimeoutError:
            raise too_many_concurrent(agent) from None
        try:
            with self._asking(agent, locks):
                if self._binding.must_look(agent):
                    await _in_thread(self._binding.check, agent)
                return await self._drive(self._steps(agent, estimate, labels, start_s), start_s)
        finally:
            lock.release()

    async def _drive(self, steps: Steps[AsyncHold], start_s: float) -> AsyncHold:
        answer: Answered = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            try:
                answer = await self._take(step, start_s)
            except BaseException as error:  # Includes cancellation.
                steps.throw(error)  # Puts back what the question earmarked, and re-raises.

    async def _take(self, step: Step, start_s: float) -> Answered:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        with self._exchanging(start_s):
            if isinstance(step, ReadPlan):
                return await _in_thread(self._counter.read_plan, *step)
            requests = [each.request for each in step.all]
            if self._in_loop is not None:
                return await asyncio.gather(*map(self._in_loop.sync, requests))  # They go in one exchange.
            if self._counter.immediate:
                return self._counter.sync(requests)
            return await _in_thread(self._counter.sync, requests)


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` in a thread, or directly at the end of the process, when no thread can start."""
    if threading.main_thread().is_alive():
        context = contextvars.copy_context()
        try:
            waiting = asyncio.get_running_loop().run_in_executor(None, partial(context.run, call, *args, **kwargs))
        except RuntimeError:  # A process that was forked while its parent ended has an executor that ended, too.
            return call(*args, **kwargs)
        return await waiting
    return call(*args, **kwargs)
