"""One number for many."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all does not pass; 0 of nothing."""
    return sorted(values)[math.ceil(len(values) * share) - 1] if values else 0.0
