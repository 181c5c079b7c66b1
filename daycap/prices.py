"""Price model calls with `Prices`. Needs genai-prices (`pip install "daycap[prices]"`)."""

from daycap.pricing.prices import Prices

__all__ = ["Prices"]
