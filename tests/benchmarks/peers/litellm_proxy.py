"""litellm: what its proxy does for each request of a key with a max_budget: `reserve_budget_for_request` before it and
`reconcile_budget_reservation` after it, with the spend counters in Redis. One event loop a process, a task a caller.

The estimate is litellm's own: max_tokens of a model that costs a micro a token, and nothing for a prompt of a word.
There is no database, so that only the counters in Redis are asked.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import litellm
from callers import Refused, Unavailable, config, serve
from fastapi import HTTPException
from litellm.caching.redis_cache import RedisCache
from litellm.proxy import proxy_server
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.spend_tracking.budget_reservation import reconcile_budget_reservation, reserve_budget_for_request

MODEL = "a-micro-a-token"
ROUTE = "/v1/chat/completions"


class LitellmProxy:
    def __init__(self) -> None:
        url = urlsplit(config()["redis"])
        proxy_server.spend_counter_cache.redis_cache = RedisCache(
            host=url.hostname, port=url.port, db=int(url.path.lstrip("/"))
        )
        price = {"input_cost_per_token": 0.0, "output_cost_per_token": 1e-6}
        litellm.register_model(
            {MODEL: {**price, "max_output_tokens": 10**9, "litellm_provider": "openai", "mode": "chat"}}
        )

    async def open(self, key: str, cap: int) -> None:
        """The cap is the key's, and travels with each request."""

    async def begin(self, key: str, cap: int, *, fail_closed: bool) -> None:
        self._fail_closed = fail_closed
        self._token = UserAPIKeyAuth(token=key, max_budget=cap / 1e6, spend=0.0)

    async def reserve(self, estimate: int) -> dict[str, Any]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": estimate}
        try:
            hold = await reserve_budget_for_request(
                request_body=body,
                route=ROUTE,
                llm_router=None,
                valid_token=self._token,
                team_object=None,
                user_object=None,
                prisma_client=None,
                user_api_key_cache=proxy_server.user_api_key_cache,
                proxy_logging_obj=proxy_server.proxy_logging_obj,
                fail_closed_budget_enforcement=self._fail_closed,
            )
        except litellm.BudgetExceededError as error:
            raise Refused from error
        except HTTPException as error:
            raise Unavailable from error
        assert hold is not None, "nothing was reserved"
        return hold

    async def settle(self, hold: dict[str, Any], actual: int) -> None:
        await reconcile_budget_reservation(hold, actual / 1e6)

    async def finish(self) -> None:
        """Everything is in Redis already."""


if __name__ == "__main__":
    serve(LitellmProxy())
