"""`make chaos`, `python -m tests.chaos --rounds 200 --seed 1`: a fault campaign; its status says what it found."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live

from tests.chaos.brokers import BROKERS
from tests.chaos.campaign import Campaign, Round
from tests.chaos.report import picture, plot, summary


def main() -> int:
    """1 if a promise was broken; the directory with all logs, journals and the ledger is kept then."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    console.print(f"seed {options.seed}, {options.broker}")
    directory = Path(tempfile.mkdtemp(prefix="daycap-chaos-"))
    rounds: list[Round] = []
    start_s = time.monotonic()
    campaign = Campaign(directory, options.seed, options.broker)
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else nullcontext()
    try:
        with live as shown:
            for each in campaign.rounds(options.rounds):
                rounds.append(each)
                if shown is not None:
                    shown.update(picture(rounds, options.rounds, time.monotonic() - start_s), refresh=True)
                elif not options.quiet:
                    console.print(_line(each), highlight=False, soft_wrap=True)
                if each.violations or time.monotonic() - start_s > options.seconds:
                    break
    finally:
        seconds = time.monotonic() - start_s
        if rounds and rounds[-1].violations and campaign.deployment.own_disk:
            shutil.copytree(campaign.deployment.disk, directory / "ledger-kept")
        campaign.close()
    console.print(picture(rounds, options.rounds, seconds))
    if options.json:
        options.json.write_text(json.dumps(summary(rounds, options.seed, seconds), indent=2) + "\n")
    if options.plot:
        plot(rounds, options.plot)
    if not any(each.violations for each in rounds):
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    for each in rounds:
        for one in each.violations:
            console.print(f"seed {options.seed}, round {each.number}, {', '.join(each.faults)}: {one}", soft_wrap=True)
    console.print(f"everything is in {directory}")
    return 1


def _line(each: Round) -> str:
    return (
        f"{each.number:4} {each.finalized:5} events, {each.refused:4} refused, {each.unavailable:4} unavailable, "
        f"lends again {each.lends_again_s:.2f} s, all settled {each.all_settled_s:.2f} s, "
        f"{len(each.violations)} violations: {', '.join(each.faults)}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--broker", choices=sorted(BROKERS), default="redis")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Begin no round after so many.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the figures there.")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Draw recovery by fault there, as PNG.")
    parser.add_argument("--quiet", action="store_true", help="Where there is no terminal: no line for each round.")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
