"""daycap reserve and finalize: make one hold by hand, as a runner does."""

from __future__ import annotations

import dataclasses
import sys

import click

from daycap.cli.client import answer_of
from daycap.cli.output import Usd, json_option, show
from daycap.clock import wall_ms
from daycap.money import format_usd
from daycap.protocol.wire import FINALIZE_TASK, FinalizeEvent
from daycap.settings import Settings
from daycap.wallet.hold import Hold
from daycap.wallet.sync import Wallet

_left_held: list[Hold] = []
"""A dropped hold is charged in full. This one is kept until the process ends, and its lease expires."""


@click.command()
@click.argument("agent")
@click.argument("estimate_micros", metavar="USD", type=Usd())
@json_option
def reserve(agent: str, estimate_micros: int, as_json: bool) -> None:
    """Hold USD of AGENT's money and leave it held.

    It comes back by itself when its lease expires; daycap finalize charges what the call cost.
    """
    # Nothing is leased beyond the hold: this process ends now and could not hand it back.
    wallet = Wallet.from_settings(dataclasses.replace(Settings.from_env(), slice_seconds=0))
    hold = wallet.reserve(agent, estimate_micros)
    _left_held.append(hold)
    facts = {"reservation": hold.id, "agent": hold.agent, "day": hold.day, "held_micros": hold.held_micros}
    held = format_usd(hold.held_micros)
    show(
        facts,
        as_json,
        lambda: (
            f"held {held} of {hold.agent} for {hold.day}; charge what the call cost with\n"
            f"daycap finalize {hold.agent} {hold.id} USD --day {hold.day} --held {held.removeprefix('$')}"
        ),
    )


@click.command()
@click.argument("agent")
@click.argument("reservation")
@click.argument("actual_micros", metavar="USD", type=Usd())
@click.option("--day", required=True, help="The day that the hold belongs to.")
@click.option("--held", "held_micros", type=Usd(), required=True, help="The held amount in US dollars.")
@json_option
def finalize(agent: str, reservation: str, actual_micros: int, day: str, held_micros: int, as_json: bool) -> None:
    """Charge the actual cost, USD, of a hold that daycap reserve made, and wait until it is settled."""
    lease, _, number = reservation.rpartition("-")
    if not (lease and number.isdecimal()):
        raise click.BadParameter("a reservation is what daycap reserve printed: LEASE-NUMBER", param_hint="RESERVATION")
    event = FinalizeEvent(lease, int(number), 1, agent, day, held_micros, actual_micros, wall_ms())
    FinalizeEvent.from_wire(event.to_wire())
    counts = answer_of(FINALIZE_TASK, events=[event.to_wire()])
    became = next((name for name in ("settled", "duplicates") if counts[name]), "dead letter")
    message = {
        "settled": f"settled; daycap status {agent} shows it",
        "duplicates": "already settled with the same cost; nothing is charged twice",
        "dead letter": f"it became a dead letter; see why: daycap dead-letters list --agent {agent}",
    }[became]
    show({**event.to_wire(), "became": became}, as_json, lambda: message)
    sys.exit(became == "dead letter")
