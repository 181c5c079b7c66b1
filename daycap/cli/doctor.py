"""daycap doctor: check each part and say what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click
import redis
from kombu.connection import Connection
from rich.table import Table
from rich.text import Text

from daycap.cli.client import NoWorker, ask, operator_app
from daycap.cli.finding import FAIL, OK, WARN, Finding, dead_letters, plans
from daycap.cli.output import json_option, show, table
from daycap.clock import day_of, wall_ms
from daycap.counters.redis import RedisCounter
from daycap.delivery.celery import waiting_messages
from daycap.errors import DaycapError
from daycap.settings import Settings

_STYLE = {OK: "green", WARN: "yellow", FAIL: "bold red"}
_MOST_CLOCK_OFFSET_MS = 5_000
_ANSWER_S = 20
"""A worker whose ledger is busy retries for seconds, message by message, before it answers."""

_ASKS = 5
_BEAT_LATE_S = 120.0


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check every part and say what to do. Exits with status 1 if something does not work."""
    settings = Settings.from_env()
    findings = list(_check_embedded(settings) if settings.embedded else _check_servers(settings))
    show([finding._asdict() for finding in findings], as_json, lambda: _table(findings))
    sys.exit(any(finding.state == FAIL for finding in findings))


def _check_embedded(settings: Settings) -> Iterator[Finding]:
    from daycap.cli import doctor_embedded  # noqa: PLC0415  (slow to import)

    return doctor_embedded.check(settings)


def _check_servers(settings: Settings) -> Iterator[Finding]:
    yield from _check_counter(settings)
    broker = list(_check_broker(settings))
    yield from broker
    yield from _check_ledger(settings)
    if broker[-1].state == FAIL:
        yield Finding("worker", WARN, "not asked", "fix the broker first")
    else:
        yield from _check_worker(settings)


def _check_counter(settings: Settings) -> Iterator[Finding]:
    if not settings.redis_url:
        yield Finding("counter", WARN, "DAYCAP_REDIS_URL is not set", "runners will count in their own memory")
        return
    counter = RedisCounter(settings.redis_url, timeout_s=2)
    try:
        info, now_ms = counter.info(), counter.now_ms()
        if _is_cluster(info):
            yield _cluster("counter", "DAYCAP_REDIS_URL")
            return
        counter.read([("daycap-doctor", day_of(now_ms))])
    except DaycapError as error:
        yield Finding("counter", FAIL, str(error), "start Redis, or set DAYCAP_REDIS_URL to where it is")
        return
    finally:
        counter.close()
    yield _version(info)
    yield Finding("scripts", OK, "sync, publish and read are loaded")
    yield _eviction(info.get("maxmemory_policy", "unknown"))
    yield _clock(now_ms - wall_ms())


def _is_cluster(info: dict[str, str]) -> bool:
    return "cluster" in (info.get("redis_mode"), info.get("server_mode"))


def _cluster(part: str, variable: str) -> Finding:
    return Finding(part, FAIL, "it is a node of a Redis Cluster", f"set {variable} to one server, or a failover pair")


def _version(info: dict[str, str]) -> Finding:
    name = "valkey" if "valkey_version" in info else "redis"
    version = info.get("valkey_version", info.get("redis_version", "unknown"))
    if name == "redis" and int(version.split(".")[0] or 0) < 6:
        return Finding("counter", FAIL, f"{name} {version}", "use Redis 6.2 or newer, or Valkey")
    return Finding("counter", OK, f"{name} {version}, run id {info['run_id'][:8]}")


def _eviction(policy: str) -> Finding:
    if policy == "noeviction":
        return Finding("eviction", OK, policy)
    if policy == "unknown":
        return Finding("eviction", WARN, "the server does not report it", "make sure that it is noeviction")
    return Finding(
        "eviction", FAIL, policy, "a full server would drop counters: CONFIG SET maxmemory-policy noeviction"
    )


def _clock(offset_ms: int) -> Finding:
    found = f"the counter is {offset_ms / 1000:+.3f} s from this host"
    if abs(offset_ms) > _MOST_CLOCK_OFFSET_MS:
        return Finding("clock", WARN, found, "days follow the counter's clock: keep it right with NTP")
    return Finding("clock", OK, found)


def _check_broker(settings: Settings) -> Iterator[Finding]:
    if not settings.broker_url:
        yield Finding("broker", FAIL, "DAYCAP_BROKER_URL is not set", "set it, for example redis://127.0.0.1:6379/1")
        return
    app = operator_app()
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
            if _is_cluster(_info_of_broker(connection)):
                yield _cluster("broker", "DAYCAP_BROKER_URL")
                return
        yield Finding("broker", OK, f"{waiting_messages(app):,} messages wait")
    except Exception as error:
        if "cluster mode" in str(error):  # It has one database, and refuses SELECT for any other.
            yield _cluster("broker", "DAYCAP_BROKER_URL")
            return
        yield Finding(
            "broker", FAIL, f"{type(error).__name__}: {error}", "start it, or set DAYCAP_BROKER_URL to where it is"
        )
        return
    if settings.broker_url == settings.redis_url:
        yield Finding(
            "broker", WARN, "it is the counter's database", "give it one of its own: the counter may be flushed"
        )


def _info_of_broker(connection: Connection) -> dict[str, str]:
    """Return a Redis broker's INFO; empty if the broker is not Redis, or denies it to this user."""
    client = getattr(connection.default_channel, "client", None)
    if client is None:
        return {}
    try:
        return dict(client.info("server"))
    except redis.exceptions.NoPermissionError:
        return {}


def _check_ledger(settings: Settings) -> Iterator[Finding]:
    """Check the ledger directly if this host has its URL: workers do not start before it is migrated."""
    if not settings.ledger_url:
        return
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  (slow to import)

    from daycap.ledger.engine import Ledger  # noqa: PLC0415

    ledger = Ledger(settings.ledger_url)
    try:
        ledger.check_tables()
    except DaycapError as error:
        found, _, advice = str(error).partition("; ")
        yield Finding("ledger", FAIL, found, advice)
    except SQLAlchemyError as error:
        found = f"it does not answer: {type(error).__name__}"
        yield Finding(
            "ledger", FAIL, found, "start it, or set DAYCAP_LEDGER_URL to where it is; then alembic upgrade head"
        )
    else:
        yield Finding("ledger", OK, "answers, and its migration fits this release")
    finally:
        ledger.close()


def _check_worker(settings: Settings) -> Iterator[Finding]:
    try:
        ask("daycap.check_ledger", timeout_s=_ANSWER_S)
    except NoWorker as error:
        advice = "celery -A worker worker" if "no worker" in error.message else "fix the broker first"
        yield Finding("worker", FAIL, error.message, advice)
        return
    except click.ClickException as error:
        if "alembic" in error.message:
            yield Finding("ledger", FAIL, error.message, "alembic upgrade head")
        else:
            yield Finding("ledger", FAIL, error.message, "repair or unlock it; events wait in the queue meanwhile")
        return
    yield Finding("worker", OK, "answers")
    if not settings.ledger_url:
        yield Finding("ledger", OK, "writable and at the worker's migration")
    yield _check_beat()
    yield _check_plans()
    yield dead_letters(ask("daycap.count_dead_letters"))


def _check_plans() -> Finding:
    try:
        return plans(lambda after: ask("daycap.check_plans", after=after))
    except click.ClickException as error:
        return Finding("plans", WARN, f"not known: {error.message}", "upgrade the workers")


def _check_beat() -> Finding:
    """Ask several times: each of several workers gets some of beat's tasks, and another one may answer."""
    late: dict[str, float] = {}
    for number in range(_ASKS):
        try:
            answer = ask("daycap.last_beat")
        except click.ClickException as error:
            return Finding("beat", WARN, f"not known: {error.message}", "upgrade the workers")
        ago_s = {each["task"]: each["ago_s"] for each in answer if each["ago_s"] > 3 * each["every_s"] + _BEAT_LATE_S}
        late = ago_s if number == 0 else {task: min(ago_s[task], s) for task, s in late.items() if task in ago_s}
        if not late:
            came = sum(each["came"] for each in answer)
            return Finding("beat", OK, f"its tasks come: {came} of {len(answer)} have, and none is late")
    tasks = ", ".join(f"{task} for {seconds:,.0f} s" for task, seconds in sorted(late.items()))
    return Finding("beat", FAIL, f"no worker got {tasks}", "celery -A worker beat")


def _table(findings: list[Finding]) -> Table:
    rows = table("part", "", "found", "what to do")
    for finding in findings:
        rows.add_row(finding.part, Text(finding.state, style=_STYLE[finding.state]), finding.found, finding.advice)
    return rows
