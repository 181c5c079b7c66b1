"""LiteLLM's metered calls on both faces, as one object of the same verbs, for tests."""

from __future__ import annotations

import asyncio
from typing import Any

from daycap import AsyncWallet, Wallet

MODEL = "gpt-4o"
MESSAGES = [{"role": "user", "content": "hello there"}]
MAX_TOKENS = 100


class Threads:
    """Calls as a program with threads makes them."""

    def __init__(self, *, meter: Any = None, environ: dict[str, str] | None = None, **cap: int) -> None:
        from daycap.litellm import Metered

        self.wallet = Wallet.from_env(caps=cap or None, environ=environ or {})
        self.metered: Any = Metered(self.wallet, **(meter or {}))

    def call(self, of: Any = None, **call: Any) -> Any:
        call = {"model": MODEL, "messages": MESSAGES, "max_tokens": MAX_TOKENS, "user": "rich", **call}
        return (of or self.metered).completion(**call)

    def next(self, stream: Any) -> Any:
        return next(stream)

    def read(self, stream: Any) -> list[Any]:
        return list(stream)

    def close(self, stream: Any) -> None:
        stream.close()

    def turn(self) -> None:
        pass

    def spent(self, agent: str = "rich") -> int:
        assert self.wallet.stats().live_holds == 0
        assert self.wallet.flush() == ()
        return self.wallet.spent(agent).micros

    def end(self) -> None:
        self.wallet.close()


class Loop:
    """The same, as a program with an event loop makes them."""

    def __init__(self, *, meter: Any = None, environ: dict[str, str] | None = None, **cap: int) -> None:
        from daycap.litellm import AsyncMetered

        self.runner = asyncio.Runner()
        self.wallet = AsyncWallet.from_env(caps=cap or None, environ=environ or {})
        self.metered: Any = AsyncMetered(self.wallet, **(meter or {}))

    def call(self, of: Any = None, **call: Any) -> Any:
        return self.runner.run(self.acall(of, **call))

    async def acall(self, of: Any = None, **call: Any) -> Any:
        call = {"model": MODEL, "messages": MESSAGES, "max_tokens": MAX_TOKENS, "user": "rich", **call}
        return await (of or self.metered).acompletion(**call)

    def next(self, stream: Any) -> Any:
        async def one() -> Any:
            return await anext(stream)

        return self.runner.run(one())

    def read(self, stream: Any) -> list[Any]:
        async def rest() -> list[Any]:
            return [chunk async for chunk in stream]

        return self.runner.run(rest())

    def close(self, stream: Any) -> None:
        self.runner.run(stream.aclose())

    def turn(self) -> None:
        self.runner.run(asyncio.sleep(0.01))

    def spent(self, agent: str = "rich") -> int:
        assert self.wallet.stats().live_holds == 0
        assert self.runner.run(self.wallet.flush()) == ()
        return self.runner.run(self.wallet.spent(agent)).micros

    def end(self) -> None:
        self.runner.run(self.wallet.close())
        self.runner.close()
