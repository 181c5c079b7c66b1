"""Many small messages are settled in one transaction; whatever happens to it, each of them is settled once."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import Any

import redis

from daycap.delivery.celery import CeleryTransport
from daycap.protocol.wire import FINALIZE_QUEUE, FinalizeEvent, new_lease_id
from tests.faults.broker import HELD_BACK_S, let_time_pass
from tests.faults.ledger import LockedLedger
from tests.spine import Spine

M = 1_000_000
MANY = 150


def events(agent: str, day: str, many: int = MANY) -> list[FinalizeEvent]:
    lease = new_lease_id(agent, day, b"0123456789abcdef")
    return [FinalizeEvent(lease, n, n, agent, day, 100, 70, 1) for n in range(1, many + 1)]


def send_one_by_one(spine: Spine, some: list[Any]) -> None:
    """A message for each, as runners with little to do send them."""
    transport = CeleryTransport(spine.settings.broker_url)
    for event in some:
        transport.send([event])
    transport.close()


def transactions(spine: Spine) -> list[int]:
    """How many messages each batch had, as the worker's log says."""
    return [int(found) for found in re.findall(r"(\d+) messages: settled", spine.worker.container.logs())]


def test_messages_that_wait_are_settled_together(spine: Spine, broker: redis.Redis) -> None:
    agent = spine.add("agent-7", 5 * M)
    spine.worker.container.kill("SIGSTOP")
    send_one_by_one(spine, events(agent, spine.today))

    spine.worker.container.kill("SIGCONT")

    spine.wait_for(lambda: spine.settled_once(agent) == (MANY, MANY * 70))
    spine.wait_for(lambda: broker.hlen("unacked") == broker.zcard("unacked_index") == 0)
    assert sum(transactions(spine)) == MANY
    assert len(transactions(spine)) <= MANY / 3
    (seq,) = spine.rows("SELECT seq FROM daily_agent_spending")
    assert seq["seq"] == 1 + len(transactions(spine))


def waits_with_some(broker: redis.Redis) -> bool:
    """Whether a worker takes no more messages, and has several."""
    before = broker.hlen("unacked")
    time.sleep(0.3)
    return 1 < before == broker.hlen("unacked")


def test_killed_with_many_gathered_none_is_lost_and_none_settled_twice(
    spine: Spine, broker: redis.Redis, locked_ledger: LockedLedger
) -> None:
    agent = spine.add("agent-7", 5 * M)
    some = events(agent, spine.today)
    spine.worker.container.kill("SIGSTOP")
    send_one_by_one(spine, some)
    with locked_ledger:
        spine.worker.container.kill("SIGCONT")
        spine.wait_for(lambda: waits_with_some(broker))
        spine.worker.kill()
    spine.worker.restart()

    let_time_pass(broker, HELD_BACK_S)

    spine.wait_for(lambda: broker.hlen("unacked") == broker.llen(FINALIZE_QUEUE) == 0, timeout_s=40)
    # All but the one that may have been on its way from the broker to the worker, which kombu has not noted anywhere.
    assert spine.settled_once(agent)[0] >= MANY - 1
    send_one_by_one(spine, some)  # As its runner does with what is not settled.
    spine.wait_for(lambda: spine.settled_once(agent) == (MANY, MANY * 70))
    spine.wait_for(lambda: broker.hlen("unacked") == broker.llen(FINALIZE_QUEUE) == 0)
    assert spine.settled_once(agent) == (MANY, MANY * 70)


def test_a_bad_message_among_them_is_set_aside_alone(spine: Spine, broker: redis.Redis) -> None:
    agent = spine.add("agent-7", 5 * M)
    good = events(agent, spine.today, 20)
    bad = good[0]._replace(agent="nobody", lease="x" * 20)
    spine.worker.container.kill("SIGSTOP")
    send_one_by_one(spine, [*good[:10], bad, *good[10:]])
    spine.app.send_task("daycap.finalize", kwargs={"event": "not events"}, queue=FINALIZE_QUEUE)

    spine.worker.container.kill("SIGCONT")

    spine.wait_for(lambda: spine.settled_once(agent) == (20, 1400))
    spine.wait_for(lambda: broker.hlen("unacked") == broker.llen(FINALIZE_QUEUE) == 0)
    kinds = Counter(row["kind"] for row in spine.rows("SELECT kind FROM dead_letters"))
    assert kinds == {"unknown_agent": 1, "malformed": 1}


def test_whoever_waits_for_an_answer_gets_that_of_its_own_message(spine: Spine) -> None:
    agent = spine.add("agent-7", 5 * M)
    some = events(agent, spine.today, 30)
    send_one_by_one(spine, some[:-1])

    said = spine.deliver(some[-1].to_wire())

    assert said == {"settled": 1, "duplicates": 0, "dead_letters": 0}
    spine.wait_for(lambda: spine.settled_once(agent) == (30, 2100))


def test_flower_hears_of_each_message(spine: Spine) -> None:
    agent = spine.add("agent-7", 5 * M)
    heard: Counter[str] = Counter()
    results: list[Any] = []

    def hear(said: dict[str, Any]) -> None:
        heard[said["type"]] += 1
        if said["type"] == "task-succeeded":
            results.append(said["result"])

    with spine.app.connection_for_read() as connection:
        receiver = spine.app.events.Receiver(connection, handlers={"*": hear})
        listening = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": 60})
        listening.start()
        spine.wait_for(lambda: heard["worker-heartbeat"])
        before = heard["task-succeeded"]
        send_one_by_one(spine, events(agent, spine.today, 20))
        try:
            spine.wait_for(lambda: heard["task-succeeded"] >= before + 20)
        finally:
            receiver.should_stop = True
            listening.join()

    assert min(heard["task-received"], heard["task-started"]) >= 20
    assert re.fullmatch(r"agent-7 \$0\.00007 \(messages \d+, settled \d+, duplicates 0, dead_letters 0\)", results[-1])
