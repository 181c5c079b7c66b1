"""tokencap with its SQLite backend: its call path for streams, which reconciles when the stream is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from solo import ACTUAL, CAP, ESTIMATE, main
from tokencap import Action, ActionKind, DimensionPolicy, Policy, Threshold
from tokencap.backends.sqlite import SQLiteBackend
from tokencap.core.guard import Guard
from tokencap.core.types import TokenUsage
from tokencap.interceptor.base import call_stream


class Answer:
    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc_info: object) -> bool:
        return False


class Provider:
    def estimate_tokens(self, kwargs: dict[str, Any]) -> int:
        return ESTIMATE

    def extract_usage(self, answer: Answer) -> TokenUsage:
        return TokenUsage(input_tokens=0, output_tokens=ACTUAL)


def opened() -> Guard:
    block = Threshold(at_pct=1.0, actions=[Action(kind=ActionKind.BLOCK)])
    policy = Policy(dimensions={"session": DimensionPolicy(limit=CAP, thresholds=[block])})
    return Guard(policy, identifiers={"session": "agent"}, backend=SQLiteBackend("spend.db"), quiet=True)


def open_file() -> Callable[[], None]:
    guard, provider = opened(), Provider()

    def call() -> None:
        with call_stream(lambda **_: Answer(), {}, guard, provider):
            pass

    return call


def read() -> int:
    return int(next(iter(opened().get_status().dimensions.values())).used)


if __name__ == "__main__":
    main(open_file, read)
