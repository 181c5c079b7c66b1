"""The command `daycap` and its verbs."""

from __future__ import annotations

import logging
from typing import Any

import click

from daycap.errors import DaycapError
from worker.command_line import agents, audit, dead_letters, doctor, identity, run, trying


class Commands(click.Group):
    """Errors of daycap end a command with their message and status 1, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DaycapError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="daycap")
def cli() -> None:
    """Keeps AI agents inside their daily budget.

    The environment says where counter, broker and ledger are: DAYCAP_REDIS_URL, DAYCAP_BROKER_URL,
    DAYCAP_LEDGER_URL. `daycap run` shows everything at work without any of them.
    """
    logging.getLogger("daycap").setLevel(logging.ERROR)


agents.agent.add_command(identity.anchor)
agents.agent.add_command(identity.address)

for command in (
    run.run,
    run.replay,
    agents.agent,
    agents.cap,
    agents.pause,
    agents.resume,
    agents.status,
    trying.reserve,
    trying.finalize,
    audit.audit,
    dead_letters.dead_letters,
    doctor.doctor,
):
    cli.add_command(command)
