"""What is done around a call: by `metered` for a function that makes one, and by what wraps a client library."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, cast

from daycap.errors import InvalidInput, UnknownModel
from daycap.pricing.answer_cost import Answer, cost_of
from daycap.pricing.request_fields import USUAL_TIERS
from daycap.pricing.usage import Call
from daycap.wallet.hold import BaseHold

if TYPE_CHECKING:
    from daycap.pricing.prices import Prices

logger = logging.getLogger("daycap")

P = ParamSpec("P")
T = TypeVar("T")

AgentOf: TypeAlias = str | Callable[..., str]
"""An agent, or who says it by the function's arguments."""

CostOf: TypeAlias = Callable[[Any], int] | None
"""What a function's result says that the call cost, in micros."""


def check_kind(function: Callable[..., object], *, coroutine: bool) -> None:
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


def note_cost(
    hold: BaseHold, result: object, cost: CostOf, call: Mapping[str, Any], prices: Callable[[], Prices]
) -> None:
    """Tell the hold what its call cost: by `cost`, else, for a `call` of a model, by what the result says.

    With neither, that is all that it holds; and where another model answered that has no price.
    """
    if cost is not None:
        hold.actual = cost(result)
    elif call:
        answer = _answer_of(result)
        try:
            hold.actual = cost_of(prices(), (cast(Call, call),), answer)
        except UnknownModel as error:
            logger.warning("hold %s is charged in full: %s", hold.id, error)


def _answer_of(result: Any) -> Answer:
    """What a result says of its cost, by the names that OpenAI, Anthropic and LiteLLM give it, or by Google's."""
    model, tier = _first(result, "model", "model_version", "modelVersion"), _first(result, "service_tier")
    return Answer(
        _first(result, "usage", "usage_metadata", "usageMetadata"),
        {model} if isinstance(model, str) and model else (),
        ("" if tier in USUAL_TIERS else tier) if isinstance(tier, str) else None,
    )


def _first(result: Any, *names: str) -> Any:
    """The first of these fields that has a value."""
    for name in names:
        value = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
        if value is not None:
            return value
    return None
