"""tokencap: its call path for streams, which checks when it is made and reconciles when it is left.

The policy is the one that `wrap(client, limit=...)` makes. Its unit is a token; here one is a micro.
"""

from __future__ import annotations

from typing import Any

from callers import Refused, config, serve
from tokencap import Action, ActionKind, BudgetExceededError, DimensionPolicy, Policy, Threshold
from tokencap.backends.redis import RedisBackend
from tokencap.core.guard import Guard
from tokencap.core.types import TokenUsage
from tokencap.interceptor.base import GuardedStream, call_stream


class Answer:
    """A provider's stream that costs what it is told."""

    actual = 0

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc_info: object) -> bool:
        return False


class Provider:
    """What tokencap asks about a call: the estimate, and what was used."""

    def estimate_tokens(self, kwargs: dict[str, Any]) -> int:
        return kwargs["estimate"]

    def extract_usage(self, answer: Answer) -> TokenUsage:
        return TokenUsage(input_tokens=0, output_tokens=answer.actual)


class TokencapStream:
    def __init__(self) -> None:
        self._backend = RedisBackend(config()["redis"])

    def open(self, key: str, cap: int) -> None:
        self.begin(key, cap)

    def begin(self, key: str, cap: int) -> None:
        block = Threshold(at_pct=1.0, actions=[Action(kind=ActionKind.BLOCK)])
        policy = Policy(dimensions={"session": DimensionPolicy(limit=cap, thresholds=[block])})
        self._guard = Guard(policy, identifiers={"session": key}, backend=self._backend, quiet=True)

    def reserve(self, estimate: int) -> tuple[GuardedStream, Answer]:
        answer = Answer()
        try:
            return call_stream(lambda **_: answer, {"estimate": estimate}, self._guard, Provider()), answer
        except BudgetExceededError as error:
            raise Refused from error

    def settle(self, hold: tuple[GuardedStream, Answer], actual: int) -> None:
        stream, answer = hold
        answer.actual = actual
        with stream:
            pass

    def finish(self) -> None:
        """Everything is in Redis already."""


if __name__ == "__main__":
    serve(TokencapStream())
