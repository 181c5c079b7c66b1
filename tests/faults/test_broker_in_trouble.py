"""Redis answers, with an error: the worker waits, says so once, and goes on by itself."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from demo.local_server import LocalServer, free_port
from tests.faults.load import ACTUAL, spend
from tests.processes import LocalWorker
from tests.spine import Spine, wait_for

M = 1_000_000
Trouble = Callable[[redis.Redis], AbstractContextManager[None]]


@contextmanager
def configured(client: redis.Redis, **settings: str) -> Iterator[None]:
    before: dict[str, Any] = {name: client.config_get(name)[name] for name in settings}
    for name, value in settings.items():
        client.config_set(name, value)
    yield
    for name, value in before.items():
        client.config_set(name, value)


@contextmanager
def replica(client: redis.Redis) -> Iterator[None]:
    """UNBLOCKED, then READONLY."""
    client.replicaof("127.0.0.1", 1)
    yield
    client.replicaof("NO", "ONE")


@contextmanager
def stale_replica(client: redis.Redis) -> Iterator[None]:
    """MASTERDOWN."""
    with configured(client, **{"replica-serve-stale-data": "no"}), replica(client):
        yield


@contextmanager
def cannot_save(client: redis.Redis) -> Iterator[None]:
    """MISCONF."""
    in_the_way = Path(str(client.config_get("dir")["dir"]), str(client.config_get("dbfilename")["dbfilename"]))
    in_the_way.mkdir()
    with configured(client, save="1 1"):
        client.set("something", "to save")
        with suppress(redis.ResponseError):
            client.bgsave()
        wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] != "ok")
        yield
        in_the_way.rmdir()
        client.bgsave()
        wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok")


@contextmanager
def other_password(client: redis.Redis) -> Iterator[None]:
    """NOAUTH, on connections that are made anew."""
    client.config_set("requirepass", "changed")
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub")
    yield
    client.config_set("requirepass", "")


@contextmanager
def no_permission(client: redis.Redis) -> Iterator[None]:
    """NOPERM."""
    client.execute_command("ACL", "SETUSER", "default", "-brpop")
    yield
    client.execute_command("ACL", "SETUSER", "default", "+@all")


@contextmanager
def busy(client: redis.Redis) -> Iterator[None]:
    """BUSY."""
    with configured(client, **{"busy-reply-threshold": "50"}):
        other = redis.Redis(port=client.connection_pool.connection_kwargs["port"], socket_timeout=60)

        def run() -> None:
            with suppress(redis.RedisError):
                other.eval("while true do end", 0)

        script = threading.Thread(target=run)
        script.start()
        wait_for(lambda: _is_busy(client))
        yield
        client.script_kill()
        script.join()
        other.close()


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError:
        return True
    return False


TROUBLES: dict[str, Trouble] = {
    "READONLY": replica,
    "Link with MASTER": stale_replica,
    "MISCONF": cannot_save,
    "Authentication": other_password,
    "brpop": no_permission,
    "BUSY": busy,
}


@pytest.mark.parametrize("word", TROUBLES)
def test_worker_waits_until_it_is_over(spine: Spine, broker: redis.Redis, word: str) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    worker = spine.worker.container
    said = len(worker.logs())

    with TROUBLES[word](broker):
        wait_for(lambda: re.search(f"(is failing|Cannot connect).*{word}", worker.logs()[said:], re.IGNORECASE))
        time.sleep(2.5)  # Tries enough to be talkative about.
        assert worker.status == "running"
    wait_for(lambda: "the broker recovered" in worker.logs()[said:])

    spend(wallet, agent, 5)
    assert wallet.flush(timeout=20) == ()
    assert spine.settled_once(agent) == (5, 5 * ACTUAL)
    lines = worker.logs()[said:].splitlines()
    assert len([line for line in lines if "ERROR" in line or "CRITICAL" in line]) <= 4, lines


def test_full_broker_is_emptied(spine: Spine, broker: redis.Redis, locked_ledger: AbstractContextManager[None]) -> None:
    """OOM: it refuses to note what was taken, and nothing but taking makes room."""
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    worker = spine.worker.container
    worker.kill("SIGSTOP")
    spend(wallet, agent, 20)
    wait_for(lambda: not wallet.stats().waiting)

    with configured(broker, maxmemory="1"):
        worker.kill("SIGCONT")
        wait_for(lambda: spine.settled_once(agent) == (20, 20 * ACTUAL))
        assert worker.status == "running"

    assert wallet.flush(timeout=20) == ()


@pytest.mark.parametrize("word", ["NOAUTH", "CLUSTERDOWN"])
def test_worker_that_starts_waits(word: str, empty_ledger: Path, tmp_path: Path) -> None:
    options = {
        "NOAUTH": ("--requirepass", "secret"),
        "CLUSTERDOWN": ("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
    }[word]
    words = {"NOAUTH": "Authentication", "CLUSTERDOWN": "Hash slot not served"}[word]
    broker, counter = LocalServer(*options).start(), LocalServer().start()
    environment = {
        "DAYCAP_REDIS_URL": counter.url(),
        "DAYCAP_BROKER_URL": broker.url(),
        "DAYCAP_LEDGER_URL": f"sqlite:///{empty_ledger}",
    }
    worker = LocalWorker(tmp_path, environment)
    try:
        wait_for(lambda: words in worker.logs())
        if word == "NOAUTH":
            with redis.Redis(port=broker.port, password="secret") as client:
                client.config_set("requirepass", "")
            wait_for(lambda: "ready." in worker.logs())
        assert worker.status == "running"
    finally:
        for process in (worker, broker, counter):
            process.kill()
