"""`python -m tests.mutation [--file F]... [--every N]`: which mutants of the code no quick test notices.

Each mutant is made in a copy of the tree and tried by the tests of its file that are quick, then by some seeds of the
simulation, until one fails or time is up. `docs/mutants.md` explains those that no test can or need notice.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.mutation.mutants import Mutant, mutants
from tests.mutation.trial import ROOT, Trial, prepare

_BOOK = [
    f"tests/unit/test_{part}.py"
    for part in ("lease_book_to_the_micro", "long_calls_to_the_micro", "lease_book", "lease_days")
]
_COUNTER = ["tests/contract/test_counter_to_the_millisecond.py", "tests/contract/test_counter.py"]
_DAMAGED = "tests/contract/test_damaged_counter.py"
_MODELS_BOOK = "tests/model/test_lease_book_is_the_model.py"
_MODELS_COUNTER = "tests/model/test_counter_is_the_model.py"
_PRICES = [f"tests/unit/test_{part}.py" for part in ("usage", "prices", "own_prices")]
_USAGE = [*_PRICES, "tests/integration/test_prices_of_clients.py"]
_WALLET = [
    *("tests/unit/test_wallet_alone.py", "tests/unit/test_wallet_in_trouble.py", "tests/unit/test_binding.py"),
    *("tests/unit/test_priced_wallet.py", "tests/unit/test_metered.py", "tests/unit/test_outbox.py"),
    "tests/contract/test_binding.py",
    *("-k", "not postgresql"),
]
_LOOP = [*(f"tests/{kind}/test_async_wallet.py" for kind in ("unit", "integration")), "-p", "pytest_celery", *_WALLET]
_NO_LEDGER = ("-k", "not ledger")
_CLIENTS = ["tests/integration/test_metered_clients.py", "tests/integration/test_metered_requests.py", *_NO_LEDGER]
_LITELLM = ["tests/integration/test_litellm.py", "tests/integration/test_litellm_requests.py", *_NO_LEDGER]
_OPENING = ["tests/contract/test_opening.py", "-k", "sqlite"]

TESTS: dict[str, tuple[list[str], int]] = {
    "daycap/wallet/holds.py": ([*_BOOK, _MODELS_BOOK], 0),
    "daycap/wallet/leases.py": ([*_BOOK, _MODELS_BOOK], 0),
    "daycap/wallet/exchanges.py": ([*_BOOK, _MODELS_BOOK], 0),
    "daycap/wallet/unsettled.py": ([*_BOOK, _MODELS_BOOK], 0),
    "daycap/wallet/lease.py": ([*_BOOK, "tests/unit/test_priced_wallet.py", _MODELS_BOOK], 0),
    "daycap/wallet/top_up.py": (["tests/unit/test_top_up.py"], 1),
    "daycap/counters/memory.py": (
        [*_COUNTER, _MODELS_COUNTER, *_BOOK, "-k", "memory or MemoryCounter or not test_counter"],
        0,
    ),
    "daycap/delivery/outbox.py": (["tests/unit/test_outbox_files.py", "tests/unit/test_outbox.py"], 0),
    "daycap/delivery/sender.py": (["tests/unit/test_sender.py"], 0),
    "daycap/pricing/usage.py": (_USAGE, 0),
    "daycap/pricing/usage_fields.py": ([*_USAGE, "tests/unit/test_http_calls.py"], 0),
    "daycap/pricing/used_tokens.py": (_USAGE, 0),
    "daycap/pricing/bills.py": (["tests/unit/test_bills.py"], 0),
    "daycap/pricing/rates.py": ([*_PRICES, "tests/properties/test_price_names.py"], 0),
    "daycap/pricing/own.py": (_PRICES, 0),
    "daycap/pricing/prices.py": (_PRICES, 0),
    "daycap/counters/scripts/sync.lua": (
        [*_COUNTER, _DAMAGED, _MODELS_COUNTER, "-k", "process or scripts or damaged"],
        0,
    ),
    "daycap/counters/scripts/publish.lua": (
        [*_COUNTER, _DAMAGED, _MODELS_COUNTER, "-k", "process or scripts or expiry or damaged"],
        0,
    ),
    "daycap/counters/scripts/read.lua": ([*_COUNTER, _DAMAGED, "-k", "process or scripts or damaged"], 0),
    "daycap/counters/redis.py": (
        [
            *("tests/contract/test_counter.py", "tests/contract/test_redis_counter.py"),
            *("tests/unit/test_async_wallet.py", "-k", "redis or expiry or async"),
        ],
        0,
    ),
    "daycap/wallet/base.py": (_WALLET, 0),
    "daycap/wallet/sync.py": (_WALLET, 0),
    "daycap/wallet/aio.py": (_LOOP, 0),
    "daycap/counters/async_redis.py": (
        ["tests/contract/test_redis_counter.py", "tests/unit/test_async_wallet.py", "-k", "not threads"],
        0,
    ),
    "daycap/counters/per_loop.py": (["tests/contract/test_redis_counter.py", "-k", "not threads"], 0),
    "daycap/wallet/renewer.py": (["tests/unit/test_renewer.py", *_WALLET], 0),
    "daycap/wallet/binding.py": (
        ["tests/unit/test_binding.py", "tests/contract/test_binding.py", "-k", "not postgresql"],
        0,
    ),
    "daycap/identity.py": (["tests/unit/test_identity.py"], 0),
    "daycap/wallet/metering.py": (["tests/unit/test_metered.py", *_CLIENTS], 0),
    "daycap/pricing/request_fields.py": (["tests/unit/test_http_calls.py", *_CLIENTS, *_LITELLM], 0),
    "daycap/pricing/answer_cost.py": ([*_CLIENTS, *_LITELLM], 0),
    "daycap/integrations/http_calls.py": (["tests/unit/test_http_calls.py", *_CLIENTS], 0),
    "daycap/integrations/http_usage.py": (["tests/unit/test_http_calls.py", *_CLIENTS], 0),
    "daycap/integrations/http_meter.py": (_CLIENTS, 0),
    "daycap/integrations/httpx.py": (_CLIENTS, 0),
    "daycap/integrations/litellm.py": (_LITELLM, 0),
    "daycap/integrations/litellm_calls.py": (_LITELLM, 0),
    "daycap/integrations/litellm_sent.py": (_LITELLM, 0),
    "daycap/ledger/settle.py": (
        ["tests/contract/test_settle.py", "-k", "sqlite and not many_workers and not at_once"],
        0,
    ),
    "daycap/ledger/opening.py": (_OPENING, 1),
    "worker/housekeeping.py": (["tests/contract/test_housekeeping.py", "-k", "sqlite"], 0),
}
"""The mutated files: which tests try their mutants, and how many seeds of each scenario after these."""

_EXPLAINED = ROOT / "docs" / "mutants.md"


@click.command()
@click.option("--file", "files", multiple=True, type=click.Choice(list(TESTS)), help="Only this one, or these.")
@click.option("--every", default=1, show_default=True, help="Only each so manieth mutant.")
@click.option("--processes", default=min(2, os.cpu_count() or 1), show_default=True)
def main(files: tuple[str, ...], every: int, processes: int) -> None:
    """Print the mutants that survived; fail if one of them is not explained."""
    signal.signal(signal.SIGTERM, _end)
    explained = _EXPLAINED.read_text() if _EXPLAINED.exists() else ""
    unexplained = 0
    with tempfile.TemporaryDirectory(prefix="daycap-mutants-") as directory:
        trees = [prepare(Path(directory) / str(number)) for number in range(processes)]
        for file in files or TESTS:
            source = (ROOT / file).read_bytes()
            wanted = mutants(file, source)[::every]
            survivors = _try(wanted, source, trees)
            known = [mutant for mutant in survivors if f"- {mutant.title(source)}\n" in explained]
            for mutant in survivors:
                if mutant not in known:
                    click.echo("\n".join([f"\nsurvived: - {mutant.title(source)}", *mutant.diff(source)]))
            unexplained += len(survivors) - len(known)
            click.echo(
                f"{file}: {len(wanted)} mutants, {len(wanted) - len(survivors)} killed, {len(known)} explained, "
                f"{len(survivors) - len(known)} survived"
            )
    sys.exit(unexplained > 0)


def _end(number: int, _: object) -> None:
    """Leave as after Ctrl-C: what runs is ended and the trees are removed."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _try(wanted: list[Mutant], source: bytes, trees: list[Path]) -> list[Mutant]:
    """The mutants that survive, one trial in each tree at a time."""
    file = wanted[0].file
    began = time.monotonic()
    tests, seeds = TESTS[file]
    for tree in trees:
        if not (trial := Trial(tree, file, source, tests, seeds, timeout_s=300)).result():
            sys.exit(f"the tests of {file} fail without a mutant:\n{trial.output[-3000:]}")
    timeout_s = 10 + 4 * (time.monotonic() - began)
    waiting, survivors, free = list(reversed(wanted)), [], list(trees)
    running: dict[Mutant, Trial] = {}
    try:
        while waiting or running:
            while waiting and free:
                mutant = waiting.pop()
                running[mutant] = Trial(free.pop(), file, mutant.of(source), tests, seeds, timeout_s)
            for mutant in [mutant for mutant, trial in running.items() if trial.ended]:
                trial = running.pop(mutant)
                free.append(trial.tree)
                if trial.result():
                    survivors.append(mutant)
                done = len(wanted) - len(waiting) - len(running)
                print(
                    f"\r{file}: {done}/{len(wanted)}, {len(survivors)} survived ", end="", file=sys.stderr, flush=True
                )
            time.sleep(0.01)
    finally:
        for trial in running.values():
            trial.kill()
            trial.result()
    print(file=sys.stderr)
    return sorted(survivors)


if __name__ == "__main__":
    main()
