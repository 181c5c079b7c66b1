"""Identity binding: a wallet bound to an identity anchor serves only the agent with that anchor."""

from __future__ import annotations

import hmac

from daycap.errors import BudgetUnavailable, InvalidSetting, LedgerUnavailable, NotYourAgent
from daycap.identity import identity_anchor
from daycap.ledger.reader import LedgerReader
from daycap.protocol.wire import agent_id


class Binding:
    """Checks agents against the wallet's own `anchor`, which is empty for an unbound wallet.

    Each agent is looked up once. Only a rotation changes an agent's anchor. A process that started before a rotation
    keeps running, so runners can get the new anchor one by one.
    """

    def __init__(self, anchor: str, ledger: LedgerReader | None) -> None:
        if anchor and ledger is None:
            raise InvalidSetting(
                "a wallet bound to an identity anchor (DAYCAP_IDENTITY_ANCHOR, or anchor=) "
                "needs DAYCAP_LEDGER_URL: only the ledger has the agents' anchors"
            )
        self._anchor = anchor
        self._ledger = ledger
        self._own: set[str] = set()

    def must_look(self, agent: str) -> bool:
        """Whether `check` must ask the ledger."""
        return bool(self._anchor) and agent not in self._own

    def check(self, agent: str) -> None:
        """Raise `NotYourAgent` unless the wallet may serve the agent, `BudgetUnavailable` if the ledger is down."""
        if not self.must_look(agent):
            return
        try:
            own = self.verify(agent, self._anchor)
        except LedgerUnavailable as error:
            raise BudgetUnavailable(f"agent {agent}: cannot check its identity anchor: {error}") from error
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
        """Forget the agents that were looked up. Called in a forked child."""
        self._own = set()
