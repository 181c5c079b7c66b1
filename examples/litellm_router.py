"""Keep LiteLLM inside a cap: use the large model while the budget lasts, then the small one, then stop.

.venv/bin/python examples/litellm_router.py
"""

from __future__ import annotations

import os
from collections import Counter

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # Use the bundled prices; fetch nothing.

from daycap import CapExceeded, Wallet, format_usd, usd
from daycap.litellm import Metered

MODELS = {"large": "openai/gpt-4o", "small": "openai/gpt-4o-mini"}
ANSWER = "A mock response: no request leaves this machine."


def main() -> None:
    with Wallet.from_env(caps={"agent-7": usd("0.008")}, environ={}) as wallet:
        router = Metered(wallet).router(
            model_list=[
                {"model_name": name, "litellm_params": {"model": model, "api_key": "none", "mock_response": ANSWER}}
                for name, model in MODELS.items()
            ],
            fallbacks=[{"large": ["small"]}],
        )
        answered: Counter[str] = Counter()
        try:
            while True:
                answer = router.completion(
                    model="large",
                    messages=[{"role": "user", "content": "What is left of my money?"}],
                    max_tokens=500,  # Sets the hold; the call is charged by its usage.
                    metadata={"agent": "agent-7"},
                )
                answered[str(answer.model)] += 1
        except CapExceeded as refused:
            print("stopped:", refused)
        wallet.flush()
        print(dict(answered), "for", format_usd(wallet.spent("agent-7").micros))


if __name__ == "__main__":
    main()
