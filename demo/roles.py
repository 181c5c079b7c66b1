"""The demo's agents: each has a job, a model, and an amount of text that it reads and writes."""

from __future__ import annotations

from typing import NamedTuple

from demo.prices import FLASH, GPT, HAIKU, MINI, OPUS, SONNET, Model


class Role(NamedTuple):
    """A job. Its agents read and write a multiple of a chat message's tokens, because of files and history."""

    name: str
    model: Model
    reads: int
    writes: int


ROLES = (
    Role("researcher", OPUS, 8, 2),
    Role("coder", SONNET, 12, 3),
    Role("support", MINI, 3, 1),
    Role("reviewer", GPT, 10, 1),
    Role("translator", HAIKU, 3, 4),
    Role("planner", OPUS, 4, 2),
    Role("analyst", SONNET, 8, 1),
    Role("summarizer", FLASH, 12, 1),
    Role("tester", GPT, 8, 2),
    Role("writer", SONNET, 3, 4),
    Role("triage", MINI, 2, 1),
    Role("contracts", OPUS, 10, 1),
    Role("scheduler", HAIKU, 2, 1),
    Role("tutor", GPT, 4, 2),
    Role("moderator", FLASH, 1, 1),
    Role("editor", SONNET, 4, 2),
    Role("sales", HAIKU, 4, 2),
    Role("designer", GPT, 3, 3),
    Role("billing", MINI, 4, 1),
    Role("scraper", FLASH, 10, 1),
)


def role_of(rank: int) -> Role:
    """Return the job of the agent at `rank`, from 0. The roles repeat after the last one."""
    return ROLES[rank % len(ROLES)]


def agent_name(rank: int, suffix: str = "") -> str:
    """Return the name of the agent at `rank`: its job, with a number from the second agent of that job on."""
    again = rank // len(ROLES)
    return "-".join(filter(None, (role_of(rank).name, str(again + 1) if again else "", suffix)))
