"""Keep LiteLLM's chat completions inside a cap: `Metered`, `AsyncMetered`. Needs `pip install "daycap[litellm]"`."""

from daycap.integrations.litellm import NOT_BILLED, AsyncMetered, Metered

__all__ = ["NOT_BILLED", "AsyncMetered", "Metered"]
