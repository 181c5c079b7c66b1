"""Whose wallet this is: a wallet that is bound to an identity anchor serves the agent of that anchor and no other."""

from __future__ import annotations

import hmac

from daycap.errors import BudgetUnavailable, InvalidSetting, LedgerUnavailable, NotYourAgent
from daycap.identity import identity_anchor
from daycap.ledger.reader import LedgerReader
from daycap.protocol.wire import agent_id


class Binding:
    """What the ledger says of agents and their identity anchors; `anchor` is the wallet's own, empty if it has none.

    An agent is looked up once. Which agent an anchor is of does not change but by a rotation; a process that began
    before one goes on until its end, so that runners can be given the new anchor one after the other.
    """

    def __init__(self, anchor: str, ledger: LedgerReader | None) -> None:
        if anchor and ledger is None:
            raise InvalidSetting(
                "a wallet that is bound to an identity anchor (DAYCAP_IDENTITY_ANCHOR, or anchor=) "
                "needs DAYCAP_LEDGER_URL: only the ledger knows whose it is"
            )
        self._anchor = anchor
        self._ledger = ledger
        self._own: set[str] = set()

    def must_look(self, agent: str) -> bool:
        """Whether `check` has to ask the ledger."""
        return bool(self._anchor) and agent not in self._own

    def check(self, agent: str) -> None:
        """Raise `NotYourAgent` unless the wallet may serve the agent, `BudgetUnavailable` if that cannot be said."""
        if not self.must_look(agent):
            return
        try:
            own = self.verify(agent, self._anchor)
        except LedgerUnavailable as error:
            raise BudgetUnavailable(f"agent {agent}: it cannot be seen if it is this wallet's own: {error}") from error
        if not own:
            raise NotYourAgent(agent)
        self._own.add(agent)

    def verify(self, agent: str, anchor: str) -> bool:
        """See `Wallet.verify_identity_binding`."""
        agent, anchor = agent_id(agent), identity_anchor(anchor)
        if self._ledger is None:
            raise InvalidSetting("identity anchors are in the ledger: set DAYCAP_LEDGER_URL")
        found = self._ledger.anchor_of(agent)
        return found is not None and hmac.compare_digest(found.encode(), anchor.encode())

    def forget(self) -> None:
        """In a forked child, which looks for itself."""
        self._own = set()
