"""Operators' requests to the ledger. A worker, or the command line itself, answers them as JSON."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daycap.errors import DaycapError
from daycap.ledger import accounts, anchors, apply, audit, budgets, dead_letters, groups, plan_check, raises
from daycap.ledger.engine import Ledger, is_transient, unavailable
from daycap.ledger.publish import CounterPublisher
from daycap.settings import Settings

logger = logging.getLogger("daycap.worker")

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Administration:
    """Operations on one ledger. Each raises the errors of the function that it calls."""

    settings: Settings
    ledger: Ledger
    publisher: CounterPublisher

    def add_agents(self, caps: dict[str, int], changed_by: str, anchors: dict[str, str] | None = None) -> int:
        """See `accounts.add`."""
        return accounts.add(self.ledger, self.publisher, caps, changed_by, anchors)

    def set_cap(self, agent: str, cap_micros: int, changed_by: str) -> JSON:
        """See `accounts.set_cap`."""
        return accounts.set_cap(self.ledger, self.publisher, agent, cap_micros, changed_by)._asdict()

    def set_status(self, agent: str, status: str, changed_by: str) -> JSON:
        """See `accounts.set_status`."""
        return accounts.set_status(self.ledger, self.publisher, agent, status, changed_by)._asdict()

    def find_agents(self, agents: list[str] | None = None, after: str = "", limit: int = 1000) -> list[JSON]:
        """See `accounts.find`."""
        return [each._asdict() for each in accounts.find(self.ledger, self.publisher, agents, after, limit)]

    def set_anchor(self, agent: str, anchor: str, changed_by: str, rotate: bool = False) -> list[JSON]:
        """See `anchors.set_anchor`."""
        changes = anchors.set_anchor(self.ledger, self.publisher, agent, anchor, changed_by, rotate)
        return [change._asdict() for change in changes]

    def find_anchor_changes(self, agent: str) -> list[JSON]:
        """See `anchors.history`."""
        return [change._asdict() for change in anchors.history(self.ledger, agent)]

    def add_budget(self, name: str, facts: JSON, changed_by: str, reason: str | None = None) -> JSON:
        """See `budgets.add`."""
        return budgets.add(self.ledger, self.publisher, name, facts, changed_by, reason)._asdict()

    def set_budget(self, name: str, facts: JSON, changed_by: str, reason: str | None = None) -> JSON:
        """See `budgets.alter`."""
        return budgets.alter(self.ledger, self.publisher, name, facts, changed_by, reason)._asdict()

    def remove_budget(self, name: str, changed_by: str, reason: str | None = None) -> None:
        """See `budgets.remove`."""
        budgets.remove(self.ledger, self.publisher, name, changed_by, reason)

    def find_budgets(
        self,
        names: list[str] | None = None,
        after: str = "",
        limit: int = 1000,
        agent: str | None = None,
        group: str | None = None,
    ) -> list[JSON]:
        """See `budgets.find`."""
        found = budgets.find(self.ledger, self.publisher, names, after, limit, agent, group)
        return [each._asdict() for each in found]

    def add_group(
        self, group: str, agents: list[str], member_groups: list[str], changed_by: str, reason: str | None = None
    ) -> JSON:
        """See `groups.add`."""
        return groups.add(self.ledger, self.publisher, group, agents, member_groups, changed_by, reason)._asdict()

    def join_group(
        self, group: str, agents: list[str], member_groups: list[str], changed_by: str, reason: str | None = None
    ) -> JSON:
        """See `groups.join`."""
        return groups.join(self.ledger, self.publisher, group, agents, member_groups, changed_by, reason)._asdict()

    def leave_group(
        self, group: str, agents: list[str], member_groups: list[str], changed_by: str, reason: str | None = None
    ) -> JSON:
        """See `groups.leave`."""
        return groups.leave(self.ledger, self.publisher, group, agents, member_groups, changed_by, reason)._asdict()

    def remove_group(self, group: str, changed_by: str, reason: str | None = None) -> None:
        """See `groups.remove`."""
        groups.remove(self.ledger, self.publisher, group, changed_by, reason)

    def find_groups(self, names: list[str] | None = None, after: str = "", limit: int = 1000) -> list[JSON]:
        """See `groups.find`."""
        return [each._asdict() for each in groups.find(self.ledger, names, after, limit)]

    def find_budget_changes(self, kind: str, name: str, limit: int = 1000) -> list[JSON]:
        """See `budgets.changes`."""
        return [each._asdict() for each in budgets.changes(self.ledger, kind, name, limit)]

    def apply_budgets(
        self,
        groups_wanted: JSON,
        budgets_wanted: JSON,
        changed_by: str,
        reason: str | None = None,
        prune: bool = False,
        dry_run: bool = False,
        shown: str | None = None,
    ) -> JSON:
        """See `apply.apply`."""
        wanted = apply.wanted(groups_wanted, budgets_wanted)
        return apply.apply(
            self.ledger, self.publisher, wanted, changed_by, reason, prune=prune, dry_run=dry_run, shown=shown
        )._asdict()

    def raise_cap(
        self,
        by_micros: int,
        changed_by: str,
        agent: str | None = None,
        budget: str | None = None,
        reason: str | None = None,
        until_ms: int | None = None,
        for_ms: int | None = None,
    ) -> JSON:
        """See `raises.raise_cap`."""
        return raises.raise_cap(
            self.ledger, self.publisher, agent, budget, by_micros, changed_by, reason, until_ms=until_ms, for_ms=for_ms
        )._asdict()

    def reset_cap(
        self, changed_by: str, agent: str | None = None, budget: str | None = None, reason: str | None = None
    ) -> JSON:
        """See `raises.reset`."""
        return raises.reset(self.ledger, self.publisher, agent, budget, changed_by, reason)._asdict()

    def cancel_raise(self, number: int, changed_by: str, reason: str | None = None) -> JSON:
        """See `raises.cancel`."""
        return raises.cancel(self.ledger, self.publisher, number, changed_by, reason)._asdict()

    def find_raises(
        self, agent: str | None = None, budget: str | None = None, ended: bool = False, limit: int = 1000
    ) -> list[JSON]:
        """See `raises.find`."""
        found = raises.find(self.ledger, self.publisher, agent, budget, ended=ended, limit=limit)
        return [each._asdict() for each in found]

    def audit(self, day: str | None = None) -> JSON:
        """See `audit.audit`."""
        return audit.audit(self.ledger, self.publisher, self.settings, day)._asdict()

    def check_plans(self, after: str = "") -> JSON:
        """See `plan_check.check_plans`."""
        return plan_check.check_plans(self.ledger, after)._asdict()

    def count_dead_letters(self) -> int:
        """See `dead_letters.count`."""
        return dead_letters.count(self.ledger)

    def find_dead_letters(self, kind: str | None = None, agent: str | None = None, limit: int = 50) -> list[JSON]:
        """See `dead_letters.find`."""
        return [each._asdict() for each in dead_letters.find(self.ledger, kind, agent, limit)]

    def show_dead_letter(self, prefix: str) -> JSON:
        """See `dead_letters.get`."""
        return dead_letters.get(self.ledger, prefix)._asdict()

    def drop_dead_letters(self, prefixes: list[str], dropped_by: str) -> list[str]:
        """See `dead_letters.drop`. Logs who dropped which payload."""

        def log(letter: dead_letters.Letter) -> None:
            logger.warning("dead letter %s (%s) dropped by %s: %s", letter.id, letter.kind, dropped_by, letter.payload)

        return dead_letters.drop(self.ledger, prefixes, log)


def answer(work: Callable[..., object], *args: object) -> JSON:
    """Return the result of `work`, or the message of a daycap or transient error. Raises any other error."""
    try:
        return {"result": work(*args)}
    except DaycapError as error:
        return refusal(error)
    except Exception as error:
        if not is_transient(error):
            raise
        return refusal(unavailable(error))


def refusal(error: DaycapError) -> JSON:
    """Return the answer for a refused request."""
    return {"error": type(error).__name__, "message": str(error)}
