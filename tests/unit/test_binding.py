"""Without a ledger that answers no wallet is bound, and nobody new is served by one that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from daycap import BudgetUnavailable, InvalidInput, InvalidSetting, LedgerUnavailable, Settings, Wallet
from daycap.counters.memory import MemoryCounter
from daycap.delivery.memory import MemoryLedger, caps_in_code
from daycap.ledger.reader import LedgerReader
from daycap.wallet.wiring import Parts


def test_without_a_ledger_nothing_can_be_bound_or_verified() -> None:
    with pytest.raises(InvalidSetting, match="DAYCAP_LEDGER_URL"):
        Wallet.from_env(caps={"a": 100}, environ={}, anchor="anchor of a")
    with pytest.raises(InvalidSetting, match="DAYCAP_LEDGER_URL"):
        Wallet.from_env(caps={"a": 100}, environ={"DAYCAP_IDENTITY_ANCHOR": "anchor of a"})
    with (
        Wallet.from_env(caps={"a": 100}, environ={}) as wallet,
        pytest.raises(InvalidSetting, match="DAYCAP_LEDGER_URL"),
    ):
        wallet.verify_identity_binding("a", "anchor of a")


def test_what_cannot_be_an_anchor_is_refused_before_a_wallet_is_made() -> None:
    with pytest.raises(InvalidSetting, match="DAYCAP_IDENTITY_ANCHOR"):
        Settings.from_env({"DAYCAP_IDENTITY_ANCHOR": "a\0b"})
    # An empty one in code is a mistake, and does not make a wallet that serves all.
    with pytest.raises(InvalidInput, match="identity anchor"):
        Wallet.from_env(caps={"a": 100}, environ={}, anchor="")


def test_while_the_ledger_is_away_nobody_new_is_served(tmp_path: Path) -> None:
    counter, settings = MemoryCounter(), Settings(identity_anchor="anchor of a")
    transport = MemoryLedger(counter, settings.terms, caps_in_code({"a": 100}))
    reader = LedgerReader(f"sqlite:///{tmp_path}/nowhere.sqlite3")
    with Wallet(Parts(counter, transport, reader, None), settings) as wallet:
        with pytest.raises(BudgetUnavailable, match="cannot check its identity anchor: the ledger did not answer"):
            wallet.reserve("a", 1)
        with pytest.raises(LedgerUnavailable):
            wallet.verify_identity_binding("a", "anchor of a")
