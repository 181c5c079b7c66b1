"""daycap dead-letters: show, replay and drop what could not be settled."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from daycap.cli.agents import by_option
from daycap.cli.client import ask
from daycap.cli.output import json_option, money, show, table, time
from daycap.protocol.dead_letter import Kind
from daycap.settings import Settings

_SHORTEST_ID = 12

kind_option = click.option("--kind", type=click.Choice(list(map(str, Kind))), help="Only letters of this kind.")


@click.group("dead-letters")
def dead_letters() -> None:
    """Show, replay or drop what could not be settled. The beginning of an ID is enough."""


@dead_letters.command("list")
@kind_option
@click.option("--agent", help="Only events of this agent.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
def list_some(kind: str | None, agent: str | None, limit: int, as_json: bool) -> None:
    """Show dead letters, most recent first."""
    letters = ask("daycap.find_dead_letters", kind=kind, agent=agent, limit=limit)
    show(letters, as_json, lambda: _list(letters))


@dead_letters.command("show")
@click.argument("prefix", metavar="ID")
@json_option
def show_one(prefix: str, as_json: bool) -> None:
    """Show the whole dead letter ID. In JSON, its payload is the text as it was stored."""
    letter = ask("daycap.show_dead_letter", prefix=prefix)
    show(letter, as_json, lambda: _letter(letter))


@dead_letters.command()
@click.argument("prefixes", metavar="ID...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Replay every dead letter.")
@kind_option
@by_option
@json_option
def replay(prefixes: tuple[str, ...], everything: bool, kind: str | None, by: str, as_json: bool) -> None:
    """Settle dead letters again, for example after their agent was added. Exits with status 1 if any remains."""
    if everything == bool(prefixes):
        raise click.UsageError("name the dead letters to replay, or pass --all")
    if kind and not everything:
        raise click.UsageError("--kind goes with --all")
    done = list(_replay_all(kind, by) if everything else _replay_named(list(prefixes), by))
    show(done, as_json, lambda: _replayed(done))
    sys.exit(any(each["became"] not in ("settled", "duplicate") for each in done))


@dead_letters.command()
@click.argument("prefixes", metavar="ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@by_option
@json_option
def drop(prefixes: tuple[str, ...], yes: bool, by: str, as_json: bool) -> None:
    """Delete dead letters for good. Their costs are never charged. Their payloads stay in the worker's log; without a
    worker they are printed on stderr.
    """
    if not yes:
        click.confirm(f"delete {len(prefixes)} dead letters for good?", abort=True, err=True)
    dropped = ask("daycap.drop_dead_letters", prefixes=list(prefixes), dropped_by=by)
    copies = "their payloads are above" if Settings.from_env().embedded else "the worker's log has their payloads"
    show(dropped, as_json, lambda: f"dropped {len(dropped)}; {copies}")


def _replay_named(prefixes: list[str], by: str) -> Iterator[dict[str, Any]]:
    while prefixes:
        done = ask("daycap.replay_dead_letters", timeout_s=120, prefixes=prefixes, replayed_by=by)
        yield from done
        prefixes = [prefix for prefix in prefixes if not any(each["id"].startswith(prefix) for each in done)]


def _replay_all(kind: str | None, by: str) -> Iterator[dict[str, Any]]:
    after = ""
    while done := ask("daycap.replay_next_dead_letters", timeout_s=120, kind=kind, after=after, replayed_by=by):
        yield from done
        after = done[-1]["id"]


def _list(letters: list[dict[str, Any]]) -> Table:
    rows = table("id", "kind", "agent", "times>", "last seen", "reason")
    shortest = _short_enough([letter["id"] for letter in letters])
    for letter in letters:
        rows.add_row(
            letter["id"][:shortest],
            letter["kind"],
            letter["agent"] or "-",
            f"{letter['times']:,}",
            time(letter["last_seen_at"]),
            Text(letter["reason"]),
        )
    return rows


def _letter(letter: dict[str, Any]) -> Group:
    rows = Table(box=None, show_header=False, pad_edge=False)
    for name in ("id", "kind", "agent", "reason", "times"):
        rows.add_row(name, Text(str(letter[name])))
    for name in ("first_seen_at", "last_seen_at"):
        rows.add_row(name, time(letter[name]))
    return Group(rows, "", Text(_pretty(letter["payload"])))


def _replayed(done: list[dict[str, Any]]) -> Table:
    rows = table("id", "became", "charged>", "reason")
    for each in done:
        rows.add_row(each["id"][:_SHORTEST_ID], each["became"], money(each["charged_micros"]), Text(each["reason"]))
    return rows


def _short_enough(ids: list[str]) -> int:
    """Return how many characters tell these ids apart."""
    return next(length for length in range(_SHORTEST_ID, 33) if len({each[:length] for each in ids}) == len(ids))


def _pretty(payload: str) -> str:
    try:
        return json.dumps(json.loads(payload), indent=2)
    except (ValueError, RecursionError):
        return payload  # It was cut, or is more than Python reads.
