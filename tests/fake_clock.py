"""Wall clocks of a test's own for real processes, by libfaketime. Clocks that only measure go on as they do."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from daycap.clock import day_start_ms

_SPEC = find_spec("libfaketime")
_LIBRARY = Path(_SPEC.origin).parent / "vendor/libfaketime/src/libfaketime.so.1" if _SPEC and _SPEC.origin else None

AVAILABLE = _LIBRARY is not None and _LIBRARY.exists()
"""Whether clocks can be faked here: the wheel brings the library for Linux on x86_64."""


class FakeClock:
    """A wall clock that the processes started with its `environment` follow, also when it is set anew."""

    def __init__(self, file: Path, zone: str = "UTC") -> None:
        self._file = file
        self._beside: list[tuple[FakeClock, float]] = []
        self.environment = {
            "LD_PRELOAD": str(_LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Otherwise each wait for Python's GIL ends at once, and threads spin: monotonic deadlines are not shifted.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "TZ": zone,
        }
        self.set_off(0)

    def set(self, day: str, time_of_day: str) -> None:
        """It goes on from this moment in UTC, `HH:MM:SS`."""
        hours, minutes, seconds = (float(part) for part in time_of_day.split(":"))
        moment_s = day_start_ms(day) / 1000 + hours * 3600 + minutes * 60 + seconds
        self.set_off(moment_s - time.time())

    def set_off(self, seconds: float) -> None:
        """It goes as this machine's does, so many seconds ahead of it."""
        self._seconds = seconds
        self._write(f"{seconds:+.6f}")
        for clock, ahead_s in self._beside:
            clock.set_off(seconds + ahead_s)

    def stop_at(self, ms: int) -> None:
        """It stands still at this moment, milliseconds since the epoch, until it is set anew."""
        moment = datetime.fromtimestamp(ms / 1000, UTC)
        self._write(f"{moment:%Y-%m-%d %H:%M:%S}.{ms % 1000:03d}")

    def beside(self, seconds: float, file: Path, zone: str) -> FakeClock:
        """Another clock, so many seconds ahead of this one whenever it is set, in another time zone."""
        clock = FakeClock(file, zone)
        clock.set_off(self._seconds + seconds)
        self._beside.append((clock, seconds))
        return clock

    def _write(self, said: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(said)
        new.replace(self._file)
