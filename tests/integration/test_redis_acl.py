"""The rights that docs/redis-acl-*.conf give are enough for everything, and a runner's for nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from daycap import BudgetUnavailable, Settings, Wallet
from daycap.clock import day_of, wall_ms
from daycap.counters.redis import RedisCounter, counter_key
from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, OPEN_QUEUE
from demo.local_server import LocalServer, server_binary
from tests.events import event
from tests.integration.test_command_line import run
from tests.integration.test_payloads import envelope
from tests.processes import ROOT, LocalWorker
from tests.spine import wait_for

LEASES = {"DAYCAP_LEASE_TTL_SECONDS": "3", "DAYCAP_GRACE_SECONDS": "0", "DAYCAP_RESEND_SECONDS": "1"}


class Servers:
    """A counter and a broker whose users are those of the recipe, as it stands in the docs."""

    def __init__(self, directory: Path) -> None:
        self.counter, self.broker = (
            LocalServer("--aclfile", str(ROOT / "docs" / f"redis-acl-{name}.conf"), directory=directory / name)
            for name in ("counter", "broker")
        )

    def environment(self, user: str) -> dict[str, str]:
        return {
            "DAYCAP_REDIS_URL": f"redis://daycap-{user}:change-me-{user}@127.0.0.1:{self.counter.port}/0",
            "DAYCAP_BROKER_URL": f"redis://daycap-{user}:change-me-{user}@127.0.0.1:{self.broker.port}/0",
            **LEASES,
        }

    def task(self, name: str) -> dict[str, int]:
        """What a task of beat's answers, sent as the worker's own user."""
        url = self.environment("worker")["DAYCAP_BROKER_URL"]
        app = Celery(broker=url, backend=url, set_as_current=False)
        try:
            return app.send_task(name, queue=CONTROL_QUEUE, ignore_result=False).get(timeout=20)
        finally:
            app.backend.client.connection_pool.disconnect()
            app.close()

    def refuse(self, user: str, variable: str, command: str) -> None:
        """The server does not let the user do it."""
        with (
            redis.Redis.from_url(self.environment(user)[variable]) as client,
            pytest.raises(redis.exceptions.NoPermissionError),
        ):
            client.execute_command(*command.split())

    def admin(self, server: LocalServer) -> redis.Redis:
        return redis.Redis(port=server.port, username="admin", password="change-me-admin", decode_responses=True)


def version() -> tuple[int, ...]:
    """The version of the server that the tests start."""
    said = subprocess.run([server_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)\.(\d+)", said)
    assert found is not None, said
    return tuple(map(int, found.groups()))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if version() < (7, 2):
        pytest.skip(f"the recipe names client|setinfo: Redis 7.2 or valkey; {server_binary()} is older")
    servers = Servers(tmp_path_factory.mktemp("acl"))
    servers.counter.start()
    servers.broker.start()
    yield servers
    servers.counter.stop()
    servers.broker.stop()


@pytest.fixture(scope="module")
def worker(servers: Servers, empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorker]:
    directory = tmp_path_factory.mktemp("worker")
    ledger = shutil.copy(empty_ledger, directory / "ledger.sqlite3")
    worker = LocalWorker(directory, {**servers.environment("worker"), "DAYCAP_LEDGER_URL": f"sqlite:///{ledger}"})
    worker.ready()
    yield worker
    worker.teardown()


@pytest.fixture
def operator(servers: Servers) -> Callable[..., Any]:
    """A command as the operator runs it."""
    environment = servers.environment("operator")
    return lambda *words: json.loads(run(*words, "--json", environment=environment))


@pytest.fixture
def wallet(servers: Servers, worker: LocalWorker) -> Iterator[Wallet]:
    """A runner's wallet with the runner's users."""
    with Wallet.from_settings(Settings.from_env(servers.environment("runner"))) as wallet:
        yield wallet


def test_money_is_spent_and_looked_at(wallet: Wallet, operator: Callable[..., Any]) -> None:
    operator("agent", "add", "agent-1", "--cap", "5")

    wallet.reserve("agent-1", 50_000).finalize(31_200)

    assert wallet.flush(20) == ()
    assert wallet.spent("agent-1") == (31_200, "redis")
    assert operator("status", "agent-1")[0]["counter"] == "open"
    assert operator("audit")["differences"] == []
    assert operator("dead-letters", "list") == []
    assert {finding["state"] for finding in operator("doctor")} == {"ok"}


def test_a_hold_is_made_and_charged_by_hand(operator: Callable[..., dict[str, str]], worker: LocalWorker) -> None:
    operator("agent", "add", "agent-2", "--cap", "5")
    hold = operator("reserve", "agent-2", "0.05")
    operator("finalize", "agent-2", hold["reservation"], "0.03", "--day", hold["day"], "--held", "0.05")


def test_lost_and_wrong_counters_are_repaired(
    servers: Servers, wallet: Wallet, operator: Callable[..., object]
) -> None:
    operator("agent", "add", "agent-3", "--cap", "5")
    counter, key = servers.admin(servers.counter), counter_key("agent-3", day_of(wall_ms()))
    counter.hset(key, "spent", 1_000_000)
    assert servers.task("daycap.reconcile")["drift"] == 1
    assert counter.hget(key, "spent") == "0"

    # The runner asks for the day, and the worker opens it behind a fence.
    counter.delete(key)
    with pytest.raises(BudgetUnavailable, match="lost"):
        wallet.reserve("agent-3", 1_000)
    assert counter.hget(key, "fence_until_ms")
    assert servers.task("daycap.expire")["days"] >= 1
    counter.close()


def test_what_the_broker_lost_is_sent_again(
    servers: Servers, worker: LocalWorker, wallet: Wallet, operator: Callable[..., object]
) -> None:
    operator("agent", "add", "agent-4", "--cap", "5")
    holds = [wallet.reserve("agent-4", 1_000) for _ in range(2)]
    broker = servers.admin(servers.broker)

    # Given a worker that has asked for one more message and is stopped, so that the next one stays in the queue
    worker.kill("SIGSTOP")
    holds[0].finalize(700)
    wait_for(lambda: not wallet.stats().waiting)
    holds[1].finalize(700)
    wait_for(lambda: broker.llen(FINALIZE_QUEUE))
    broker.delete(FINALIZE_QUEUE)
    worker.kill("SIGCONT")

    assert wallet.flush(30) == ()
    broker.close()


def test_what_a_killed_worker_had_not_acknowledged_is_taken_up(
    servers: Servers, worker: LocalWorker, operator: Callable[..., object]
) -> None:
    operator("agent", "add", "agent-5", "--cap", "5")
    broker, counter = servers.admin(servers.broker), RedisCounter(servers.environment("runner")["DAYCAP_REDIS_URL"], 2)
    today = day_of(counter.now_ms())

    # Given what kombu's transport leaves behind
    with broker.pipeline() as left:
        left.hset("unacked", "tag", json.dumps([envelope(event("agent-5", today)), "", FINALIZE_QUEUE]))
        left.zadd("unacked_index", {"tag": time.time() - 600})
        left.execute()

    wait_for(lambda: counter.read([("agent-5", today)])[0].spent_micros == 31_200)
    broker.close()
    counter.close()


def test_nothing_was_denied_on_the_way(servers: Servers, worker: LocalWorker) -> None:
    worker.restart()
    # As Flower does it: remote control, with the worker's users.
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker", "inspect", "ping"],
        env={**os.environ, **servers.environment("worker")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pong" in done.stdout, done.stderr
    for server in (servers.counter, servers.broker):
        with servers.admin(server) as admin:
            denied = {(entry["username"], entry["object"]) for entry in admin.acl_log()}
        assert denied == set()


@pytest.mark.parametrize(
    "command",
    [
        *("GET secret", "SET secret 1", "DEL secret", "HGETALL secret", "LPUSH secret 1", "KEYS *", "SCAN 0"),
        *("FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "ACL LIST", "CLIENT LIST", "MONITOR"),
        *("EVAL return 0", "FUNCTION LIST", "SHUTDOWN", "REPLICAOF NO ONE"),
        *("PUBLISH /0.celery.pidbox shutdown", "SUBSCRIBE celery-task-meta-1"),
    ],
)
def test_a_runner_may_do_nothing_else(servers: Servers, command: str) -> None:
    for name in ("DAYCAP_REDIS_URL", "DAYCAP_BROKER_URL"):
        servers.refuse("runner", name, command)


@pytest.mark.parametrize(
    "command",
    [
        *(f"LRANGE {FINALIZE_QUEUE} 0 -1", f"RPOP {FINALIZE_QUEUE}", f"BRPOP {FINALIZE_QUEUE} 1"),
        *(f"DEL {FINALIZE_QUEUE}", f"LPUSH {CONTROL_QUEUE} x", "HVALS unacked", "GET celery-task-meta-1"),
    ],
)
def test_a_runner_may_not_read_the_queue_nor_administer(servers: Servers, command: str) -> None:
    servers.refuse("runner", "DAYCAP_BROKER_URL", command)


@pytest.mark.parametrize(
    "command", [f"LRANGE {FINALIZE_QUEUE} 0 -1", "FLUSHALL", "KEYS *", "CONFIG GET *", "HVALS unacked"]
)
def test_an_operator_may_not_read_the_queue_either(servers: Servers, command: str) -> None:
    servers.refuse("operator", "DAYCAP_BROKER_URL", command)


@pytest.mark.parametrize("command", ["FLUSHALL", "KEYS *", "CONFIG SET maxmemory 1", "GET secret", "ACL LIST"])
def test_a_worker_may_not_do_everything(servers: Servers, command: str) -> None:
    for name in ("DAYCAP_REDIS_URL", "DAYCAP_BROKER_URL"):
        servers.refuse("worker", name, command)


def test_scripts_of_a_runner_have_no_more_rights_than_it_has(servers: Servers) -> None:
    with redis.Redis.from_url(servers.environment("runner")["DAYCAP_REDIS_URL"]) as runner:
        for foreign in ("redis.call('GET', KEYS[1])", "redis.call('FLUSHALL')"):
            sha = runner.script_load(f"return {foreign}")
            with pytest.raises(redis.ResponseError, match=r"(?i)permission|ACL"):
                runner.evalsha(sha, 1, "secret")


def test_administration_sent_to_a_runners_queue_is_a_dead_letter(
    servers: Servers, wallet: Wallet, operator: Callable[..., Any]
) -> None:
    operator("agent", "add", "agent-6", "--cap", "5")
    raise_cap = envelope(
        encoded=json.dumps([[], {"agent": "agent-6", "cap_micros": 10**9, "changed_by": "a runner"}, {}]),
        headers__task="daycap.set_cap",
    )

    with redis.Redis.from_url(servers.environment("runner")["DAYCAP_BROKER_URL"]) as runner:
        for queue in (OPEN_QUEUE, FINALIZE_QUEUE):
            runner.lpush(queue, json.dumps(raise_cap))

    wait_for(lambda: operator("doctor")[-1]["state"] == "warn", 30)
    assert operator("agent", "show", "agent-6")[0]["daily_cap_micros"] == 5_000_000
