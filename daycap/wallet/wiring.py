"""Choose a wallet's counter, transport, ledger reader and outbox from the settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from daycap.counters.async_redis import AsyncRedisCounter
from daycap.counters.memory import MemoryCounter
from daycap.counters.redis import RedisCounter
from daycap.delivery.celery import CeleryTransport
from daycap.delivery.memory import DaySource, MemoryLedger, caps_in_code
from daycap.delivery.outbox import Outbox
from daycap.delivery.transport import Transport
from daycap.errors import InvalidSetting
from daycap.ledger.follower import LedgerFollower
from daycap.ledger.reader import LedgerReader
from daycap.money import micros
from daycap.protocol.counter import UNKNOWN, AsyncCounter, Counter, DaySnapshot
from daycap.protocol.wire import agent_id
from daycap.settings import Settings

if TYPE_CHECKING:
    from daycap.pricing.prices import Prices

logger = logging.getLogger("daycap")


class Parts(NamedTuple):
    """The parts of a wallet."""

    counter: Counter
    transport: Transport
    reader: LedgerReader | None
    outbox: Outbox | None
    in_loop: AsyncCounter | None = None
    """The counter for event loops; None if a sync needs no server."""


def make_parts(settings: Settings, caps: Mapping[str, int] | None) -> Parts:
    """The parts that `settings` ask for; `caps` (agent to micros a day) are for a counter in memory alone.

    Raises `InvalidSetting` where something is missing, or does not go together.
    """
    if caps and (settings.redis_url or settings.ledger_url):
        raise InvalidSetting("caps in code are for a wallet in memory; with Redis or a ledger the worker keeps them")
    if settings.embedded:
        return _embedded(settings)
    reader = LedgerReader(settings.ledger_url) if settings.ledger_url else None
    counter, transport = _counter_and_transport(settings, caps, reader)
    in_loop = AsyncRedisCounter(settings.redis_url, settings.redis_timeout_seconds) if settings.redis_url else None
    return Parts(counter, transport, reader, _outbox(settings), in_loop)


def _embedded(settings: Settings) -> Parts:
    """One process, no server: the wallet settles into a SQLite file of its own."""
    try:
        from daycap.delivery.embedded import EmbeddedLedger  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise InvalidSetting('DAYCAP_LEDGER_URL needs SQLAlchemy: pip install "daycap[ledger]"') from error
    ledger = EmbeddedLedger.of_this_process(settings)
    try:
        outbox = Outbox(ledger.outbox, _outbox_bytes(settings))
        return Parts(ledger.counter, ledger, LedgerReader(ledger.url), outbox)
    except BaseException:
        ledger.close()
        raise


def _counter_and_transport(
    settings: Settings, caps: Mapping[str, int] | None, reader: LedgerReader | None
) -> tuple[Counter, Transport]:
    onward = CeleryTransport(settings.broker_url) if settings.broker_url else None
    if settings.redis_url:
        if onward is None:
            raise InvalidSetting("DAYCAP_REDIS_URL is set but not DAYCAP_BROKER_URL: no event would be settled")
        return RedisCounter(settings.redis_url, settings.redis_timeout_seconds), onward
    if reader is not None and onward is not None:
        return LedgerFollower(reader, settings.terms), onward
    if reader is None and not caps:
        raise InvalidSetting("set DAYCAP_REDIS_URL and DAYCAP_BROKER_URL, or name caps in code for a wallet in memory")
    if onward is None:
        logger.warning("no DAYCAP_BROKER_URL: spending is recorded in this process's memory only")
    memory = MemoryCounter()
    source = _days_of(reader) if reader is not None else _days_under(caps or {})
    return memory, MemoryLedger(memory, settings.terms, source, onward)


def _days_under(caps: Mapping[str, int]) -> DaySource:
    return caps_in_code({agent_id(agent): micros(cap) for agent, cap in caps.items()})


def _days_of(reader: LedgerReader) -> DaySource:
    def source(agent: str, day: str) -> DaySnapshot | None:
        (snapshot,) = reader.rows([(agent, day)])
        return None if snapshot.status == UNKNOWN else snapshot

    return source


def make_prices(settings: Settings) -> Prices:
    """Load prices: the file that `settings` names, if any, then genai-prices. Raises `InvalidSetting`."""
    try:
        from daycap.pricing.prices import Prices  # noqa: PLC0415  (an extra, and it takes half a second)
    except ImportError as error:
        raise InvalidSetting('prices need genai-prices: pip install "daycap[prices]"') from error
    return Prices.from_file(settings.prices_file) if settings.prices_file else Prices.default()


def _outbox(settings: Settings) -> Outbox | None:
    if not settings.outbox:
        return None
    if not settings.broker_url:
        raise InvalidSetting(
            "DAYCAP_OUTBOX keeps events for a worker: it needs DAYCAP_BROKER_URL, or a SQLite ledger and no Redis"
        )
    return Outbox(Path(settings.outbox), _outbox_bytes(settings))


def _outbox_bytes(settings: Settings) -> int:
    return settings.outbox_megabytes * 1024 * 1024
