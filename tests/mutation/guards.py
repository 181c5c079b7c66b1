"""`python -m tests.mutation.guards [--guard G]... [TESTS]`: what notices it when a guard of the protocol is taken out.

Each guard of `docs/design.md` is taken out of a copy of the code, in as few words as do it, and TESTS, the properties
unless others are named, run until one fails. `docs/mutants.md` has what was found.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click

from tests.mutation.trial import ROOT, prepare


class Edit(NamedTuple):
    """`old`, which stands once in `file`, is replaced by `new`."""

    file: str
    old: str
    new: str

    def of(self, source: str) -> str:
        """Raises ValueError where the code has moved on."""
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} has {source.count(self.old)} times, not once: {self.old}")
        return source.replace(self.old, self.new)


_BOOK, _EXCHANGES = "daycap/wallet/holds.py", "daycap/wallet/exchanges.py"
_SETTLE, _CHARGING = "daycap/ledger/settle.py", "daycap/ledger/charging.py"
_SYNC, _PUBLISH = "daycap/counters/scripts/sync.lua", "daycap/counters/scripts/publish.lua"

GUARDS: dict[str, list[Edit]] = {
    "charge clamped to what is left": [
        Edit(
            _CHARGING,
            "charge = actual if actual <= left else max(0, left)",
            "charge = actual",
        ),
    ],
    "settled-already check": [
        Edit(_SETTLE, "        outcome.duplicates += 1\n", "        return True\n"),
        Edit(_CHARGING, "= sa.insert(settlements), ", '= sa.insert(settlements).prefix_with("OR REPLACE"), '),
    ],
    "older seq ignored": [Edit(_PUBLISH, "if seq > own_seq or (base < 0 and seq == own_seq) then", "if true then")],
    "a cap change raises seq": [Edit("daycap/ledger/accounts.py", "**with_seq(days.seq + 1), ", '"seq": days.seq, ')],
    "fence": [Edit(_PUBLISH, "    fence_until_ms = now_ms + ttl_ms + guard_ms\n", "")],
    "free money deducted before it is sent": [
        Edit(
            _BOOK,
            "lease.granted - lease.returned - out < estimate:\n                    return None\n                number",
            "lease.granted - out < estimate:\n                    return None\n                number",
        ),
    ],
    "finalize frees only held - drawn": [
        Edit(_BOOK, "out = lease.out - before + (actual if actual < held else held)", "out = lease.out - before"),
    ],
    "local deadline": [
        Edit(
            _BOOK,
            "        if now_ns >= lease.deadline_ns:\n            lease.used",
            "        if False:\n            lease.used",
        ),
    ],
    "a late reply thrown away": [
        Edit(_EXCHANGES, "        if now_ns - pending.sent_ns > self._guard_ns:\n", "        if False:\n"),
    ],
    "run id compared": [
        Edit(_SYNC, "if known[1] ~= run_id then", "if not known[1] then"),
        Edit(_PUBLISH, "local opened = known.run_id ~= run_id", "local opened = (known.run_id or '') == ''"),
    ],
    "put back accepted": [Edit(_SYNC, "granted = math.max(granted, runner_granted)\n", "")],
    "what is drawn is used though it was not charged": [
        Edit(_SYNC, "local used = math.max(spent, drawn_in_all)", "local used = spent"),
    ],
    "leases are given up": [Edit(_PUBLISH, "lease.deadline_ms + grace_ms < expire_before_ms then", "false then")],
    "settled up to the first gap": [
        Edit("daycap/protocol/counter.py", "return last_event if events == last_event else 0", "return last_event"),
    ],
    "a delta needs its base": [Edit(_PUBLISH, "  elseif known.seq < base then\n", "  elseif false then\n")],
    "the sum of what was drawn is compared": [
        Edit(_PUBLISH, "if math.min(sum, MAX_MICROS) ~= drawn then", "if false then"),
    ],
    "a farewell creates no lease": [Edit(_SYNC, "if farewell and not known[10] then", "if false then")],
    "only a lease with all its events is folded": [
        Edit("daycap/ledger/folding.py", "settled.get(lease, (0, 0)) == (all_, all_)", "True"),
    ],
    "an event of a folded lease unfolds it": [Edit(_CHARGING, "        if self.folded:\n", "        if False:\n")],
    "what is not settled is sent again": [
        Edit("daycap/wallet/unsettled.py", "                    events += lease.unsettled\n", "")
    ],
}


@click.command()
@click.option("--guard", "guards", multiple=True, type=click.Choice(list(GUARDS)), help="Only this one, or these.")
@click.argument("tests", nargs=-1)
def main(guards: tuple[str, ...], tests: tuple[str, ...]) -> None:
    """Print for each guard what was broken without it; fail if nothing notices that one is gone."""
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="daycap-guards-") as directory:
        tree = prepare(Path(directory) / "tree")
        for guard in guards or GUARDS:
            began = time.monotonic()
            said = without(guard, tree, tests or ("tests/properties/test_wallet.py",))
            unnoticed += said is None
            click.echo(f"{guard}: {said or 'no test failed'} ({time.monotonic() - began:.0f} s)")
    sys.exit(unnoticed > 0)


def without(guard: str, tree: Path, tests: tuple[str, ...]) -> str | None:
    """What fails first without it, None if nothing does."""
    edits = GUARDS[guard]
    originals = {edit.file: (ROOT / edit.file).read_text() for edit in edits}
    try:
        for edit in edits:
            (tree / edit.file).write_text(edit.of((tree / edit.file).read_text()))
        command = [sys.executable, "-m", "pytest", "-x", "-q", *tests]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
        ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    finally:
        for file, text in originals.items():
            (tree / file).write_text(text)
    if ran.returncode == 0:
        return None
    failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", ran.stdout, re.MULTILINE)
    if not failed:
        raise click.ClickException(f"pytest ended with {ran.returncode}, and no test failed: {ran.stdout[-500:]}")
    broken = re.findall(r"AssertionError: \('(P\d+)'", ran.stdout)
    raised = re.findall(r"^(?:E| *\|) +([\w.]+(?:Error|Exception)): ", ran.stdout, re.MULTILINE)
    return f"{', '.join(sorted(set(broken)) or raised[-1:] or ['an error'])}, in {failed[0]}"


if __name__ == "__main__":
    main()
