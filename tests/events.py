"""Finalize events as another language's runner would write them."""

from __future__ import annotations


def event(agent: str, day: str, *, number: int = 1, lease: str = "a" * 32, **changes: object) -> dict[str, object]:
    """Event `number` of a lease: 50,000 held, 31,200 spent."""
    return {
        "v": 1,
        "reservation": f"{lease}-{number}",
        "lease": lease,
        "event": number,
        "agent": agent,
        "day": day,
        "held": 50_000,
        "actual": 31_200,
        "at_ms": 1,
        **changes,
    }
