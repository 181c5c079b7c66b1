"""Midnight (P9): real servers, workers and runners under wall clocks that a test sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery
from pytest_celery import CeleryTestWorker

from daycap.clock import DAY_MS, day_of, day_start_ms, wall_ms
from daycap.counters.redis import counter_key
from daycap.protocol.counter import DayReading
from daycap.protocol.wire import CONTROL_QUEUE
from tests import fake_clock
from tests.fake_clock import FakeClock
from tests.faults.conftest import made
from tests.processes import LocalRedis, LocalWorker, run_daycap
from tests.spine import Spine

pytestmark = pytest.mark.skipif(
    not fake_clock.AVAILABLE, reason="the libfaketime wheel has no library for this machine"
)

M = 1_000_000
TTL_S = 3
DAY = day_of(wall_ms())
NEXT = day_of(wall_ms() + DAY_MS)
MIDNIGHT_MS = day_start_ms(NEXT)
ALIKE_MS = 5
"""The server's clock and the runner's, which only measures, tick alike to some milliseconds."""


@pytest.fixture
def own_settings() -> dict[str, str]:
    return {"DAYCAP_LEASE_TTL_SECONDS": str(TTL_S), "DAYCAP_GRACE_SECONDS": "0", "DAYCAP_OPEN_TIMEOUT_SECONDS": "20"}


@pytest.fixture
def clock(tmp_path: Path) -> FakeClock:
    """The counter's clock, at noon."""
    clock = FakeClock(tmp_path / "clock")
    clock.set(DAY, "12:00:00")
    return clock


@pytest.fixture
def worker_clock(clock: FakeClock) -> FakeClock:
    """The worker's host has the server's clock, unless a test says otherwise."""
    return clock


@pytest.fixture
def counter_server(tmp_path: Path, clock: FakeClock) -> Iterator[LocalRedis]:
    """The counter's server, under that clock; the broker has this machine's."""
    server = LocalRedis(made(tmp_path / "counter"), clock)
    server.ready()
    yield server
    server.teardown()


@pytest.fixture
def celery_worker(
    own_environment: dict[str, str], tmp_path: Path, celery_setup_app: Celery, worker_clock: FakeClock
) -> Iterator[CeleryTestWorker]:
    worker = CeleryTestWorker(LocalWorker(tmp_path, own_environment, clock=worker_clock), app=celery_setup_app)
    worker.ready()
    yield worker
    worker.teardown()


def rollover(spine: Spine) -> None:
    """As beat sends it, and wait until it is done."""
    spine.app.send_task("daycap.rollover", queue=CONTROL_QUEUE, ignore_result=False).get(timeout=20)


def rows(spine: Spine, agent: str) -> dict[str, dict[str, int]]:
    """The agent's days in the ledger."""
    found = spine.rows("SELECT * FROM daily_agent_spending WHERE agent_account_id = ?", agent)
    return {row["spending_date"]: row for row in found}


def reading(spine: Spine, agent: str, day: str) -> DayReading:
    (found,) = spine.counter.read([(agent, day)])
    assert found is not None, f"{day} is not open"
    return found


def audited(spine: Spine, *days: str) -> list[object]:
    """What audits of the days find, once the counter has been reconciled."""
    spine.app.send_task("daycap.reconcile", queue=CONTROL_QUEUE, ignore_result=False).get(timeout=20)
    return [difference for day in days for difference in spine.ask("daycap.audit", day=day)["differences"]]


@pytest.mark.usefixtures("both_faces")
def test_last_seconds_hold_is_charged_to_its_day(spine: Spine, clock: FakeClock) -> None:
    agent, wallet = spine.add("agent-7", 100_000), spine.wallet()
    clock.set(DAY, "23:59:50")
    rollover(spine)

    # Given a hold that was made at 23:59:59
    clock.set(DAY, "23:59:59")
    hold = wallet.reserve(agent, 60_000)
    assert hold.day == DAY, "in the last second of a day its money can still be reserved"

    # When it is finalized at 00:05, under a new cap
    clock.set(NEXT, "00:05:00")
    spine.ask("daycap.set_cap", agent=agent, cap_micros=10_000, changed_by="test")
    hold.finalize(50_000)
    assert wallet.flush(timeout=30) == ()

    # Then its own day is charged, under its own cap
    days = rows(spine, agent)
    assert {day: (row["cap_micros"], row["spent_micros"]) for day, row in days.items()} == {
        DAY: (100_000, 50_000),
        NEXT: (10_000, 0),
    }
    assert audited(spine, DAY, NEXT) == []


@pytest.mark.usefixtures("both_faces")
@pytest.mark.parametrize("opened_ahead", [True, False])
def test_holds_over_midnight_belong_to_their_day(spine: Spine, clock: FakeClock, opened_ahead: bool) -> None:
    agent, wallet = spine.add("agent-7", 100 * M), spine.wallet()
    clock.set(DAY, "23:59:58.5")
    if opened_ahead:
        rollover(spine)
    assert set(rows(spine, agent)) == ({DAY, NEXT} if opened_ahead else {DAY})

    # When a runner reserves without a pause until some time after midnight, and spends now and then
    charged, made, now_ms = {DAY: 0, NEXT: 0}, 0, spine.counter.now_ms()
    while now_ms < MIDNIGHT_MS + 500:
        before_ms, hold = now_ms, wallet.reserve(agent, 1_000)
        now_ms = spine.counter.now_ms()
        # Then no hold is of another day than that in which it was made
        assert day_of(before_ms - ALIKE_MS) <= hold.day <= day_of(now_ms + ALIKE_MS)
        made += 1
        if made % 50 and charged[hold.day]:
            hold.release()
        else:
            hold.finalize(700)
            charged[hold.day] += 700

    # And each day is charged what was spent on it
    assert wallet.spent(agent).tier == "redis"
    assert wallet.close(timeout=30) == ()
    assert {day: row["spent_micros"] for day, row in rows(spine, agent).items()} == charged
    assert min(charged.values()) > 0
    assert not reading(spine, agent, NEXT).fenced
    assert (reading(spine, agent, DAY).leased_micros, reading(spine, agent, NEXT).leased_micros) == (0, 0)
    assert audited(spine, DAY, NEXT) == []


@pytest.mark.usefixtures("both_faces")
def test_midnight_keeps_holds_and_returns_the_rest(spine: Spine, clock: FakeClock) -> None:
    agent, wallet = spine.add("agent-7", 100 * M), spine.wallet()
    clock.set(DAY, "23:59:58")
    rollover(spine)

    # Given two calls under way and money that nobody holds, when midnight comes
    calls, others = [wallet.reserve(agent, 1_000), wallet.reserve(agent, 2_000)], 0
    while reading(spine, agent, DAY).leased_micros < 10_000:
        wallet.reserve(agent, 1_000).finalize(1)
        others += 1
    assert {call.day for call in calls} == {DAY}
    later_ms = MIDNIGHT_MS + TTL_S * 1500
    spine.wait_for(lambda: spine.counter.now_ms() > later_ms)

    # Then more than a ttl later the lease is still renewed, and has no more than is held
    lease = calls[0].id.rpartition("-")[0]
    spine.wait_for(lambda: deadline_ms(spine, agent, lease) > later_ms)
    spine.wait_for(lambda: reading(spine, agent, DAY).leased_micros == 3_000)

    # And once all has ended, the sums are exact, nothing is leased and nothing was given up
    for call in calls:
        call.finalize(900)
    wallet.reserve(agent, 5_000).finalize(400)
    assert wallet.close(timeout=30) == ()
    spent = {day: row["spent_micros"] for day, row in rows(spine, agent).items()}
    assert spent == {DAY: others + 1_800, NEXT: 400}
    for day in (DAY, NEXT):
        assert (reading(spine, agent, day).leased_micros, reading(spine, agent, day).given_up_micros) == (0, 0)
    assert audited(spine, DAY, NEXT) == []


def deadline_ms(spine: Spine, agent: str, lease: str) -> int:
    """Until when the counter keeps a lease of yesterday."""
    fields = spine.redis.hget(counter_key(agent, DAY), f"lease:{lease}")
    return int(fields.split()[-1])


def test_starting_worker_opens_a_missed_day(spine: Spine, clock: FakeClock) -> None:
    agents = [spine.add(f"agent-{number}", 5 * M) for number in range(3)]
    clock.set(DAY, "23:59:50")
    spine.worker.kill()

    clock.set(NEXT, "00:10:00")
    spine.worker.restart()

    spine.wait_for(lambda: all(spine.counter.read([(agent, NEXT) for agent in agents])))
    assert [reading(spine, agent, NEXT).fenced for agent in agents] == [False] * 3
    assert spine.wallet().reserve(agents[0], 1_000).day == NEXT


def test_many_rollovers_at_once_make_one_row_an_agent_and_no_fence(
    spine: Spine, clock: FakeClock, tmp_path: Path, own_environment: dict[str, str]
) -> None:
    # Given two workers, and a day that has begun and that nobody opened
    names = [f"agent-{number:04d}" for number in range(1_500)]
    spine.ask("daycap.add_agents", caps=dict.fromkeys(names, 5 * M), changed_by="test")
    second = LocalWorker(tmp_path, own_environment, clock=clock)
    second.ready()
    clock.set(NEXT, "00:00:01")

    # When rollovers and reconciles come all at once
    tasks = ["daycap.rollover", "daycap.rollover", "daycap.reconcile"] * 4
    sent = [spine.app.send_task(task, queue=CONTROL_QUEUE, ignore_result=False) for task in tasks]
    for each in sent:
        each.get(timeout=30)
    spine.wait_for(lambda: all(spine.counter.read([(name, NEXT) for name in names])))
    second.teardown()

    opened = spine.rows("SELECT agent_account_id, seq FROM daily_agent_spending WHERE spending_date = ?", NEXT)
    assert sorted(row["agent_account_id"] for row in opened) == names
    assert {row["seq"] for row in opened} == {1}
    assert {found.fenced for found in spine.counter.read([(name, NEXT) for name in names]) if found} == {False}


class Host:
    """A runner's host: the command daycap under a clock and in a time zone of its own."""

    def __init__(self, spine: Spine, clock: FakeClock) -> None:
        self._environment = {**spine.environment, **clock.environment}

    def daycap(self, *words: str) -> dict[str, str]:
        """Run the command; what it says as JSON."""
        return json.loads(run_daycap(*words, "--json", environment=self._environment))


@pytest.mark.parametrize(
    ("zone", "ahead_s"), [("Pacific/Kiritimati", 420), ("America/Adak", -420)], ids=["ahead", "behind"]
)
class TestHostsWithOtherClocks:
    """Every process but the server has its host's clock seven minutes off, the runner's to the other side."""

    @pytest.fixture
    def worker_clock(self, clock: FakeClock, tmp_path: Path, zone: str, ahead_s: int) -> FakeClock:
        clock.set(DAY, "23:57:00")
        return clock.beside(ahead_s, tmp_path / "worker-clock", zone)

    @pytest.fixture
    def host(self, spine: Spine, clock: FakeClock, tmp_path: Path, ahead_s: int) -> Host:
        zone = "America/Adak" if ahead_s > 0 else "Pacific/Kiritimati"
        return Host(spine, clock.beside(-ahead_s, tmp_path / "runner-clock", zone))

    def test_move_no_charge(self, spine: Spine, clock: FakeClock, host: Host, ahead_s: int) -> None:
        agent = spine.add("agent-7", 100_000)
        rollover(spine)
        if ahead_s < 0:
            clock.set(NEXT, "00:00:01")
            spine.wait_for(lambda: spine.counter.now_ms() > MIDNIGHT_MS)
            rollover(spine)
        day = DAY if ahead_s > 0 else NEXT

        # When the runner's host and the worker's are on different sides of midnight
        hold = host.daycap("reserve", agent, "0.05")
        words = (hold["reservation"], "0.04", "--day", hold["day"], "--held", "0.05")
        host.daycap("finalize", agent, *words)
        spine.wait_for(lambda: rows(spine, agent)[day]["spent_micros"] == 40_000)
        spine.ask("daycap.set_cap", agent=agent, cap_micros=90_000, changed_by="test")

        # Then the server's day is charged, and has the new cap with those that come
        assert hold["day"] == day
        assert spine.rows("SELECT * FROM dead_letters") == []
        assert {each: (row["cap_micros"], row["spent_micros"]) for each, row in rows(spine, agent).items()} == {
            DAY: (90_000, 40_000) if ahead_s > 0 else (100_000, 0),
            NEXT: (90_000, 0 if ahead_s > 0 else 40_000),
        }
        # And the change is on record as one of that day
        (changed_at,) = [row["changed_at"] for row in spine.rows("SELECT * FROM cap_changes") if row["old_cap_micros"]]
        assert day_of(changed_at) == day


class TestAServerWhoseDayNoHostHas:
    """Worker and runner have this machine's clock, the server one that is days ahead."""

    @pytest.fixture
    def worker_clock(self, tmp_path: Path) -> FakeClock:
        return FakeClock(tmp_path / "worker-clock")

    def test_opens_settles_and_is_read_on_the_servers_day(self, spine: Spine, clock: FakeClock) -> None:
        agent = spine.add("agent-7", 100_000)
        later = day_of(day_start_ms(DAY) + 5 * DAY_MS)
        clock.set(later, "12:00:00")
        rollover(spine)
        assert set(rows(spine, agent)) == {DAY, later}

        with closing(spine.wallet()) as wallet:
            wallet.reserve(agent, 60_000).finalize(60_000)
            assert wallet.flush(timeout=30) == ()

        assert rows(spine, agent)[later]["spent_micros"] == 60_000
        assert spine.wallet().remaining(agent) == (40_000, "redis"), "before the counter has ever answered"
