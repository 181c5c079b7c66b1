"""Run an agent's loop: reserve before each call, finalize after it.

    uv run python examples/plain_loop.py

Without settings it keeps caps in memory. With DAYCAP_REDIS_URL and DAYCAP_BROKER_URL, as `daycap run` prints them, its
spending goes to the ledger.
"""

from __future__ import annotations

import os
import random

from daycap import CapExceeded, Wallet, format_usd, usd

AGENT = "agent-7"


def call_model(prompt: str) -> int:
    """Stand in for a model; return the cost of the call in micros."""
    return random.Random(prompt).randint(usd("0.01"), usd("0.05"))


def main() -> None:
    caps = None if "DAYCAP_REDIS_URL" in os.environ else {AGENT: usd("0.50")}
    with Wallet.from_env(caps=caps) as wallet:
        try:
            for step in range(1000):
                with wallet.reserve(AGENT, usd("0.05")) as hold:
                    hold.actual = call_model(f"step {step}")
                print(f"step {step}: {format_usd(hold.actual)}")
        except CapExceeded as refused:
            print(f"stopped: {refused}")
        wallet.flush()
        print(f"spent today: {format_usd(wallet.spent(AGENT).micros)}")


if __name__ == "__main__":
    main()
