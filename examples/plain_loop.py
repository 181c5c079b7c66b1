"""Run an agent's loop: reserve before each call, finalize after it.

    .venv/bin/python examples/plain_loop.py

Without settings it keeps caps in memory. With the settings that `make run ARGS=--keep` prints, or with a ledger
alone, its spending goes to the ledger. First add the agent: daycap agent add agent-7 --cap 0.50
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
    caps = None if os.environ.keys() & {"DAYCAP_REDIS_URL", "DAYCAP_LEDGER_URL"} else {AGENT: usd("0.50")}
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
