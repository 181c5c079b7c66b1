"""The steps around a metered call, shared by `metered` and the integrations."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, cast

from daycap.errors import InvalidInput, UnknownModel
from daycap.pricing.answer_cost import Answer, cost_of
from daycap.pricing.request_fields import USUAL_TIERS
from daycap.pricing.usage import PricedCall
from daycap.wallet.hold import BaseHold

if TYPE_CHECKING:
    from daycap.pricing.prices import Prices

logger = logging.getLogger("daycap")

P = ParamSpec("P")
T = TypeVar("T")

AgentOf: TypeAlias = str | Callable[..., str]
"""An agent, or a function that returns it from the decorated function's arguments."""

CostOf: TypeAlias = Callable[[Any], int] | None
"""A function that returns a call's cost in micros from its result."""


LabelsOf: TypeAlias = Mapping[str, str] | None
"""A call's labels: at most 8 pairs of text."""


def with_model(labels: LabelsOf, call: Mapping[str, Any]) -> LabelsOf:
    """Return the labels with the call's model, unless they have one."""
    return {"model": call["model"], **(labels or {})}


def check_kind(function: Callable[..., object], *, coroutine: bool) -> None:
    """Raise `InvalidInput` for a generator, or for a coroutine function where none is expected and vice versa."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidInput("metered does not take generators: the call goes on after they return; reserve inside")
    if inspect.iscoroutinefunction(function) is not coroutine:
        raise InvalidInput("Wallet.metered takes a plain function, AsyncWallet.metered an async def")


def agent_of(agent: AgentOf, *args: object, **kwargs: object) -> str:
    """Return the agent of a call with these arguments."""
    return agent(*args, **kwargs) if callable(agent) else agent


@contextmanager
def sending(hold: BaseHold, definitely_not_billed: Callable[[BaseException], bool]) -> Iterator[None]:
    """Send a held call inside this block: an error ends the hold, charged in full if the call may be billed."""
    try:
        yield
    except BaseException as error:
        if definitely_not_billed(error):
            hold.release()
        else:
            hold.finalize(hold.held_micros)
        raise


def note_cost(
    hold: BaseHold, result: object, cost: CostOf, call: Mapping[str, Any], prices: Callable[[], Prices]
) -> None:
    """Set the hold's actual cost: from `cost`, or for a `call` of a model from the result's usage.

    Without either, or if a model without a price answered, the whole hold is charged.
    """
    if cost is not None:
        hold.actual = cost(result)
    elif call:
        answer = _answer_of(result)
        try:
            hold.actual = cost_of(prices(), (cast(PricedCall, call),), answer)
        except UnknownModel as error:
            logger.warning("hold %s is charged in full: %s", hold.id, error)


def _answer_of(result: Any) -> Answer:
    """Read usage, model and tier from a result, by the field names of OpenAI, Anthropic, LiteLLM and Google."""
    model, tier = _first(result, "model", "model_version", "modelVersion"), _first(result, "service_tier")
    return Answer(
        _first(result, "usage", "usage_metadata", "usageMetadata"),
        {model} if isinstance(model, str) and model else (),
        ("" if tier in USUAL_TIERS else tier) if isinstance(tier, str) else None,
    )


def _first(result: Any, *names: str) -> Any:
    """Return the first of these fields that is not None."""
    for name in names:
        value = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
        if value is not None:
            return value
    return None
