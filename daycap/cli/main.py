"""The command `daycap` and its verbs."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from daycap.cli import agents, apply, audit, budgets, dead_letters, doctor, groups, identity, manual, raises
from daycap.errors import DaycapError

_CHECKOUT = Path(__file__).resolve().parents[2]
_DEMO = ("run", "demo")
"""Commands that need the checkout: a wheel has no worker to start."""
_HIDDEN = ("replay",)
"""Old names of those."""


class Commands(click.Group):
    """Errors of daycap end a command with their message and status 1, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DaycapError as error:
            raise click.ClickException(str(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(_DEMO if _in_checkout() else ())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _DEMO + _HIDDEN:
            return super().get_command(ctx, cmd_name)
        if not _in_checkout():
            raise click.ClickException(f"daycap {cmd_name} needs daycap's source checkout, and in it: make run")
        if str(_CHECKOUT) not in sys.path:
            sys.path.insert(0, str(_CHECKOUT))
        command: click.Command = getattr(import_module("demo.commands"), cmd_name)
        return command


def _in_checkout() -> bool:
    return (_CHECKOUT / "demo" / "commands.py").is_file()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="daycap")
def cli() -> None:
    """Keeps AI agents inside their daily budget.

    The environment says where counter, broker and ledger are: DAYCAP_REDIS_URL, DAYCAP_BROKER_URL,
    DAYCAP_LEDGER_URL. `daycap run`, in a source checkout, shows everything at work without any of them.
    """
    logging.getLogger("daycap").setLevel(logging.ERROR)


agents.agent.add_command(identity.anchor)
agents.agent.add_command(identity.address)
raises.add_commands(agents.cap, budgets.budget)

for command in (
    agents.agent,
    agents.cap,
    agents.pause,
    agents.resume,
    agents.status,
    budgets.budget,
    groups.group,
    apply.apply,
    manual.reserve,
    manual.finalize,
    audit.audit,
    dead_letters.dead_letters,
    doctor.doctor,
):
    cli.add_command(command)
