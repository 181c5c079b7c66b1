"""A user's WSGI application: each request but /ready spends 1,000 micros of "agent-7".

Its wallet spends already where the module is imported, if it can: in a server that preloads it, in the master too.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from daycap import BudgetUnavailable, Wallet

AGENT, COST = "agent-7", 1_000

wallet = Wallet.from_env()
try:
    wallet.reserve("preload", 10 * COST).finalize(COST)
except BudgetUnavailable as error:
    print(error, flush=True)


def app(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
    if environ["PATH_INFO"] != "/ready":
        wallet.reserve(AGENT, 2 * COST).finalize(COST)
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
