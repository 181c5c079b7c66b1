"""Reserving by a model and ending by a usage: the same holds, in other words."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from daycap import AsyncWallet, InvalidAmount, InvalidInput, UnknownModel, Wallet
from daycap.prices import Prices
from tests.processes import ROOT

CALL: dict[str, Any] = {"model": "gpt-4o", "input_tokens": 1_000, "max_output_tokens": 500}
USAGE = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1_000}
CAPS = {"agent-7": 5_000_000}


def test_a_call_holds_its_worst_case_and_is_charged_by_its_usage() -> None:
    with Wallet.from_env(caps=CAPS, environ={}) as wallet:
        hold = wallet.reserve("agent-7", **CALL)
        assert hold.held_micros == Prices.default().worst_case_micros(**CALL)

        hold.finalize(usage=USAGE)

        assert wallet.flush() == ()
        assert wallet.spent("agent-7").micros == Prices.default().actual_micros("gpt-4o", USAGE)


def test_the_event_loops_wallet_does_the_same() -> None:
    async def main() -> int:
        async with AsyncWallet.from_env(caps=CAPS, environ={}) as wallet:
            with await wallet.reserve("agent-7", **CALL) as hold:
                hold.used(USAGE)
            assert await wallet.flush() == ()
            return (await wallet.spent("agent-7")).micros

    assert asyncio.run(main()) == Prices.default().actual_micros("gpt-4o", USAGE)


def test_parts_that_are_settled_are_not_charged_twice() -> None:
    with Wallet.from_env(caps=CAPS, environ={}) as wallet:
        hold = wallet.reserve("agent-7", **CALL)
        hold.settle_part(1_000)
        hold.settle_part(500)

        hold.finalize(usage=USAGE)

        assert wallet.flush() == ()
        assert wallet.spent("agent-7").micros == Prices.default().actual_micros("gpt-4o", USAGE)


def test_parts_above_the_usage_leave_no_charge() -> None:
    with Wallet.from_env(caps=CAPS, environ={}) as wallet:
        hold = wallet.reserve("agent-7", **CALL)
        hold.settle_part(hold.held_micros)

        hold.finalize(usage=USAGE)

        assert wallet.flush() == ()
        assert wallet.spent("agent-7").micros == Prices.default().worst_case_micros(**CALL)


def test_what_cannot_be_priced_is_refused_and_nothing_is_held() -> None:
    with Wallet.from_env(caps=CAPS, environ={}) as wallet:
        with pytest.raises(UnknownModel):
            wallet.reserve("agent-7", **{**CALL, "model": "nobody's"})
        with pytest.raises(InvalidInput, match="not both"):
            wallet.reserve("agent-7", 5, **CALL)
        with pytest.raises(InvalidAmount):
            wallet.reserve("agent-7")  # type: ignore[call-overload]
        assert wallet.stats().live_holds == 0

        hold = wallet.reserve("agent-7", 1_000)
        with pytest.raises(InvalidInput, match="reserved without a model"):
            hold.finalize(usage=USAGE)
        with pytest.raises(InvalidAmount):
            hold.finalize(None)  # type: ignore[call-overload]
        assert not hold.ended
        hold.release()


def test_a_wallet_that_is_asked_for_amounts_alone_needs_no_prices() -> None:
    program = """
import sys
sys.modules["genai_prices"] = None  # As if the extra were not installed.
from daycap import Wallet
with Wallet.from_env(caps={"agent-7": 100}, environ={}) as wallet:
    wallet.reserve("agent-7", 10).finalize(7)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
