"""daycap agent anchor and address: an agent's identity."""

from __future__ import annotations

import re
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from daycap.cli.agents import by_option
from daycap.cli.client import ask
from daycap.cli.output import json_option, show, table, time
from daycap.identity import REGISTRY, account_address, salt_of

_WHOLE = re.compile(r"0|[1-9][0-9]{0,80}|0x[0-9A-Fa-f]{1,80}", re.ASCII)
_SALT = re.compile(r"(0x)?[0-9A-Fa-f]{64}", re.ASCII)


class Whole(click.ParamType[int]):
    """A whole number: decimal, or `0x` and hex digits."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not _WHOLE.fullmatch(value):
            self.fail(f"{value!r:.80} is not a whole number", param, ctx)
        return int(value, 0)


class Salt(click.ParamType[bytes]):
    """32 bytes in hex, with or without `0x`."""

    name = "hex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        if not _SALT.fullmatch(value):
            self.fail(f"{value!r:.80} is not 32 bytes in hex", param, ctx)
        return bytes.fromhex(value.removeprefix("0x"))


@click.command()
@click.argument("name")
@click.argument("anchor", required=False)
@click.option("--rotate", is_flag=True, help="Replace NAME's current anchor.")
@by_option
@json_option
def anchor(name: str, anchor: str | None, rotate: bool, by: str, as_json: bool) -> None:
    """Give agent NAME its identity ANCHOR, or show every change of it.

    An anchor is set once; --rotate replaces it. One that is or was an agent's is never given to another. Runners
    that are bound to the old anchor (DAYCAP_IDENTITY_ANCHOR) notice when they are started again.
    """
    if anchor is not None:
        changes = ask("daycap.set_anchor", agent=name, anchor=anchor, changed_by=by, rotate=rotate)
    elif rotate:
        raise click.UsageError("--rotate needs the new ANCHOR")
    else:
        changes = ask("daycap.find_anchor_changes", agent=name)
    show(changes, as_json, lambda: _changes_table(changes))


@click.command()
@click.argument("name")
@click.option("--implementation", required=True, metavar="ADDRESS", help="Of the account that the registry makes.")
@click.option("--chain-id", type=Whole(), required=True)
@click.option("--token-contract", required=True, metavar="ADDRESS")
@click.option("--token-id", type=Whole(), required=True)
@click.option("--salt", type=Salt(), help="32 bytes; without it the keccak-256 of NAME's identity anchor.")
@click.option("--registry", default=REGISTRY, show_default=True, metavar="ADDRESS")
@json_option
def address(name: str, salt: bytes | None, as_json: bool, **account: Any) -> None:
    """Show the address of agent NAME's token-bound account (ERC-6551). Nothing is sent to any chain."""
    (found,) = ask("daycap.find_agents", agents=[name])
    anchor = found["identity_anchor"]
    if salt is None and anchor is None:
        raise click.ClickException(f"agent {name} has no identity anchor; give it one, or pass --salt")
    made_of = salt_of(anchor) if salt is None else salt
    facts = {
        "agent": name,
        "address": account_address(salt=made_of, **account),
        "salt": f"0x{made_of.hex()}",
        "anchor": anchor if salt is None else None,
        **account,
        # Exact in every language that reads JSON.
        "chain_id": str(account["chain_id"]),
        "token_id": str(account["token_id"]),
    }
    show(facts, as_json, lambda: facts["address"])


def _changes_table(changes: list[dict[str, Any]]) -> Table:
    grid = table("when (UTC)", "by", "anchor", "instead of")
    for change in changes:
        by, new, old = change["changed_by"], change["new_anchor"], change["old_anchor"]
        grid.add_row(time(change["changed_at_ms"]), Text(by), Text(new), Text("-" if old is None else old))
    return grid
