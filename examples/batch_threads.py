"""Run a batch job: many threads share one wallet and one agent's cap. What does not fit today waits until tomorrow.

.venv/bin/python examples/batch_threads.py
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from daycap import CapExceeded, Wallet, format_usd, usd

AGENT, CAP, DOCUMENTS = "nightly-batch", usd("1.00"), 500


def summarize(wallet: Wallet, document: int) -> bool:
    """Summarize a document; return False if there was no budget for it."""
    dice = random.Random(document)
    try:
        with wallet.reserve(AGENT, usd("0.01")) as hold:
            time.sleep(dice.random() / 200)  # Stands in for the model call.
            hold.actual = dice.randint(usd("0.002"), usd("0.01"))
    except CapExceeded:
        return False
    return True


def main() -> None:
    with Wallet.from_env(caps={AGENT: CAP}, environ={}) as wallet:
        left, before = list(range(DOCUMENTS)), DOCUMENTS + 1
        with ThreadPoolExecutor(32) as threads:
            # A refusal may only mean that other threads hold the rest. What they do not need is free in the next round.
            while len(left) < before:
                before = len(left)
                done = threads.map(lambda document: summarize(wallet, document), left)
                left = [document for document, was_done in zip(left, done, strict=True) if not was_done]
                wallet.flush()
                spent = wallet.spent(AGENT).micros
                print(f"{DOCUMENTS - len(left)} of {DOCUMENTS} documents for {format_usd(spent)} of {format_usd(CAP)}")
        print(f"left for tomorrow: {len(left)}")


if __name__ == "__main__":
    main()
