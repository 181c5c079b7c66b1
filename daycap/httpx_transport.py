"""Meter what an HTTP client sends: `MeteredTransport`, `AsyncMeteredTransport`.

Needs `pip install "daycap[httpx]"`.
"""

from daycap.integrations.httpx import AGENT_HEADER, LABELS_HEADER, AsyncMeteredTransport, MeteredTransport

__all__ = ["AGENT_HEADER", "LABELS_HEADER", "AsyncMeteredTransport", "MeteredTransport"]
