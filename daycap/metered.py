"""What is done around a call: by `metered` for a function that makes one, and by what wraps a client library."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeAlias, TypeVar

from daycap.errors import InvalidInput
from daycap.lease import BaseHold

P = ParamSpec("P")
T = TypeVar("T")

AgentOf: TypeAlias = str | Callable[..., str]
"""An agent, or who says it by the function's arguments."""

CostOf: TypeAlias = Callable[[Any], int] | None
"""What a function's result says that the call cost, in micros."""


def must_be(function: Callable[..., object], *, coroutine: bool) -> None:
    """Raises `InvalidInput` for a function whose call is not over when it has returned, or been awaited."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidInput("metered takes no generator: its call is not over when it returns; reserve inside it")
    if inspect.iscoroutinefunction(function) is not coroutine:
        raise InvalidInput("metered of a Wallet takes a function, that of an AsyncWallet an async def")


def agent_of(agent: AgentOf, *args: object, **kwargs: object) -> str:
    """Whose call it is."""
    return agent(*args, **kwargs) if callable(agent) else agent


@contextmanager
def sending(hold: BaseHold, surely_not_billed: Callable[[BaseException], bool]) -> Iterator[None]:
    """Around the sending of a call that is held for: an error ends the hold, in full if there may be a bill."""
    try:
        yield
    except BaseException as error:
        if surely_not_billed(error):
            hold.release()
        else:
            hold.finalize(hold.held_micros)
        raise


def note_cost(hold: BaseHold, result: object, cost: CostOf) -> None:
    """Tell the hold what its call did cost. With neither `cost` nor a model that is all that it holds."""
    if cost is not None:
        hold.actual = cost(result)
    elif hasattr(hold, "_cost_of"):
        hold.used(_usage_of(result))


def _usage_of(result: Any) -> Any:
    """A result's usage, by the name that OpenAI, Anthropic and LiteLLM give it, or by Google's."""
    for name in ("usage", "usage_metadata", "usageMetadata"):
        usage = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
        if usage is not None:
            return usage
    return None
