"""daycap agent, cap, pause, resume, status: accounts and their day."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from daycap.cli.client import ask
from daycap.cli.output import Bar, Usd, json_option, money, show, table
from daycap.cli.paging import COUNTER_S, find_all
from daycap.counters.redis import RedisCounter
from daycap.errors import CounterUnavailable
from daycap.process import me
from daycap.protocol.counter import ACTIVE, PAUSED, DayReading
from daycap.settings import Settings

by_option = click.option("--by", default=me, show_default="you", help="Who makes the change; it is recorded.")


@click.group()
def agent() -> None:
    """Add and show agents."""


@agent.command("add")
@click.argument("name")
@click.option("--cap", "cap_micros", type=Usd(), required=True, help="US dollars a day.")
@click.option("--anchor", help="Its identity anchor: a text that no other agent may ever have.")
@by_option
@json_option
def add(name: str, cap_micros: int, anchor: str | None, by: str, as_json: bool) -> None:
    """Add agent NAME with a daily cap and open today for it."""
    anchors = None if anchor is None else {name: anchor}
    ask("daycap.add_agents", caps={name: cap_micros}, changed_by=by, anchors=anchors)
    show_accounts(ask("daycap.find_agents", agents=[name]), as_json)


@agent.command("show")
@click.argument("name")
@json_option
def show_one(name: str, as_json: bool) -> None:
    """Show agent NAME: cap, status, today's books."""
    show_accounts(find_accounts(name), as_json)


@agent.command("list")
@json_option
def list_all(as_json: bool) -> None:
    """Show every agent."""
    show_accounts(find_accounts(), as_json)


@click.group()
def cap() -> None:
    """Change caps."""


@cap.command("set")
@click.argument("name")
@click.argument("cap_micros", metavar="USD", type=Usd())
@by_option
@json_option
def set_cap(name: str, cap_micros: int, by: str, as_json: bool) -> None:
    """Give agent NAME a daily cap of USD, from today on."""
    show_accounts([ask("daycap.set_cap", agent=name, cap_micros=cap_micros, changed_by=by)], as_json)


@click.command()
@click.argument("name")
@by_option
@json_option
def pause(name: str, by: str, as_json: bool) -> None:
    """Block new reservations for NAME until it is resumed."""
    show_accounts([ask("daycap.set_status", agent=name, status=PAUSED, changed_by=by)], as_json)


@click.command()
@click.argument("name")
@by_option
@json_option
def resume(name: str, by: str, as_json: bool) -> None:
    """Let agent NAME spend again."""
    show_accounts([ask("daycap.set_status", agent=name, status=ACTIVE, changed_by=by)], as_json)


@click.command()
@click.argument("name", required=False)
@json_option
def status(name: str | None, as_json: bool) -> None:
    """Show what agents (or agent NAME) have spent and leased today, from ledger and counter."""
    found = find_accounts(name)
    readings, unread = read_counter([(account["agent"], account["day"]) for account in found])
    rows = [
        {
            **account,
            "leased_micros": reading.leased_micros if reading else None,
            "remaining_micros": reading.remaining_micros if reading else None,
            "given_up_micros": reading.given_up_micros if reading else None,
            "counter": unread if reading is None else "fenced" if reading.fenced else "open",
        }
        for account, reading in zip(found, readings, strict=True)
    ]
    show(rows, as_json, lambda: _status_table(rows))
    if not as_json and any(row["counter"] == "fenced" for row in rows):
        click.echo(
            "fenced: the counter lost its data and lends again once live runners have had time to restore their leases"
        )


def find_accounts(name: str | None = None) -> list[dict[str, Any]]:
    """Return every account, or that of agent `name`."""
    return find_all("daycap.find_agents", "agent", **({} if name is None else {"agents": [name]}))


def read_counter(agent_days: list[tuple[str, str]]) -> tuple[list[DayReading | None], str]:
    """Return the counter's reading of each, and why there is none."""
    settings = Settings.from_env()
    if not settings.redis_url:
        return [None] * len(agent_days), "not set"
    counter = RedisCounter(settings.redis_url, COUNTER_S)
    try:
        return counter.read(agent_days), "not open"
    except CounterUnavailable as error:
        click.echo(f"{error}; run daycap doctor", err=True)
        return [None] * len(agent_days), "no answer"
    finally:
        counter.close()


def show_accounts(found: list[dict[str, Any]], as_json: bool) -> None:
    """Show accounts as they stand in the ledger."""

    def render() -> Table:
        named = any(account["identity_anchor"] for account in found)
        columns = ("agent", "status|", "daily cap>", "day|", "cap>", "spent>", "uncovered>", "settled>")
        grid = table(*columns, *(["anchor"] if named else []))
        for account in found:
            grid.add_row(
                account["agent"],
                account["status"],
                money(account["daily_cap_micros"]),
                account["day"],
                money(account["cap_micros"]),
                money(account["spent_micros"]),
                money(account["uncovered_micros"]),
                f"{account['settled_count']:,}",
                *([Text(account["identity_anchor"] or "-")] if named else []),
            )
        return grid

    show(found, as_json, render)


def _status_table(rows: list[dict[str, Any]]) -> Table:
    grid = table("agent", "status|", "of the cap", "cap>", "spent>", "leased>", "remaining>", "counter|")
    for row in rows:
        grid.add_row(
            row["agent"],
            row["status"],
            Bar(row["spent_micros"], row["leased_micros"] or 0, row["cap_micros"]),
            money(row["cap_micros"]),
            money(row["spent_micros"]),
            money(row["leased_micros"]),
            money(row["remaining_micros"]),
            row["counter"],
        )
    return grid
