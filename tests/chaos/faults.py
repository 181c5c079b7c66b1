"""The faults: each is a context, applied on entering and healed on leaving. At most one for each target at a time."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NamedTuple

import redis

from daycap.counters.redis import counter_key
from daycap.protocol.counter import AgentDay
from demo.local_server import LocalServer
from tests.chaos.deployment import WORKERS, ChaosRunner, Deployment
from tests.faults.ledger import LockedLedger
from tests.spine import wait_for


class Scene(NamedTuple):
    """What a fault may touch: the deployment, the agents of this round, and every counter of theirs."""

    deployment: Deployment
    agents: list[str]
    counters: list[AgentDay]
    rng: random.Random
    pause: Callable[[], None]
    """Let some work be done in the middle of a fault."""


def _revive(scene: Scene, runner: ChaosRunner) -> None:
    runner.start()
    runner.work_for(scene.agents)


@contextmanager
def worker_killed(scene: Scene) -> Iterator[None]:
    worker = scene.rng.choice(scene.deployment.workers)
    worker.kill("SIGKILL")
    yield
    worker.start()


@contextmanager
def every_worker_killed(scene: Scene) -> Iterator[None]:
    for worker in scene.deployment.workers:
        worker.kill("SIGKILL")
    yield
    for worker in scene.deployment.workers:
        worker.start()


@contextmanager
def worker_stopped(scene: Scene) -> Iterator[None]:
    worker = scene.rng.choice(scene.deployment.workers)
    worker.kill("SIGSTOP")
    yield
    worker.kill("SIGCONT")


@contextmanager
def runner_killed(scene: Scene) -> Iterator[None]:
    runner = scene.rng.choice(scene.deployment.runners)
    runner.kill()
    yield
    _revive(scene, runner)


@contextmanager
def runner_told_to_end(scene: Scene) -> Iterator[None]:
    runner = scene.rng.choice(scene.deployment.runners)
    runner.end()
    yield
    _revive(scene, runner)


@contextmanager
def runner_stopped(scene: Scene) -> Iterator[None]:
    """Past the deadline of its leases."""
    runner = scene.rng.choice(scene.deployment.runners)
    runner.signal(signal.SIGSTOP)
    scene.pause()
    scene.pause()
    yield
    runner.signal(signal.SIGCONT)


@contextmanager
def counter_stopped(scene: Scene) -> Iterator[None]:
    process = scene.deployment.counter_server.process
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)


@contextmanager
def counter_flushed(scene: Scene) -> Iterator[None]:
    """In the middle of everything, and with the same run id."""
    url = scene.deployment.counter_server.url()
    with redis.Redis.from_url(url, decode_responses=True) as client, client.pipeline(transaction=True) as pipe:
        for where in scene.counters:
            pipe.hget(counter_key(*where), "given_up")
        pipe.flushall()
        *given_up, _ = pipe.execute()
    scene.deployment.note_lives({a: int(each or 0) for a, each in zip(scene.counters, given_up, strict=True)}, {})
    yield


def _end_counter(scene: Scene) -> dict[AgentDay, int]:
    """Kill it. Nobody can reach it when it is asked what it gave up, so that nothing goes uncounted."""
    deployment = scene.deployment
    deployment.counter_link.redirect(1)
    given_up = deployment.given_up(scene.counters)
    deployment.counter_server.kill()
    return given_up


def _begin_counter(scene: Scene, before: dict[AgentDay, int]) -> None:
    deployment = scene.deployment
    deployment.note_lives(before, deployment.given_up(scene.counters))
    deployment.counter_link.redirect(deployment.counter_server.port)


@contextmanager
def counter_restarted_empty(scene: Scene) -> Iterator[None]:
    before = _end_counter(scene)
    yield
    (scene.deployment.counter_server.directory / "dump.rdb").unlink(missing_ok=True)
    scene.deployment.counter_server.start()
    _begin_counter(scene, before)


@contextmanager
def counter_restarted_with_old_data(scene: Scene) -> Iterator[None]:
    with redis.Redis.from_url(scene.deployment.counter_server.url()) as client:
        client.save()
    scene.pause()
    before = _end_counter(scene)
    yield
    scene.deployment.counter_server.start()
    _begin_counter(scene, before)


@contextmanager
def counter_failed_over(scene: Scene) -> Iterator[None]:
    """To a replica that has heard nothing for a while."""
    deployment = scene.deployment
    old = deployment.counter_server
    directory = deployment.directory / f"counter-{scene.agents[0]}"
    replica = LocalServer(directory=directory).start()
    with redis.Redis.from_url(replica.url()) as client:
        client.replicaof("127.0.0.1", old.port)
        wait_for(lambda: client.info("replication")["master_link_status"] == "up")
        client.replicaof("NO", "ONE")
    scene.pause()
    before = _end_counter(scene)
    yield
    deployment.counter_server = replica
    _begin_counter(scene, before)


@contextmanager
def replies_lost(scene: Scene) -> Iterator[None]:
    """The counter does what it is asked, and nobody hears of it."""
    scene.deployment.counter_link.swallow_replies()
    yield
    scene.deployment.counter_link.heal()


@contextmanager
def counter_slow(scene: Scene) -> Iterator[None]:
    """Around the time that an exchange may take."""
    scene.deployment.counter_link.delay(scene.rng.uniform(0.01, 0.06))
    yield
    scene.deployment.counter_link.heal()


@contextmanager
def counter_cut(scene: Scene) -> Iterator[None]:
    scene.deployment.counter_link.cut()
    scene.pause()
    scene.deployment.counter_link.cut()
    yield


@contextmanager
def broker_stopped(scene: Scene) -> Iterator[None]:
    scene.deployment.broker.stand_still()
    yield
    scene.deployment.broker.go_on()


@contextmanager
def broker_restarted(scene: Scene) -> Iterator[None]:
    """Redis is empty then, RabbitMQ is not."""
    scene.deployment.broker.kill()
    yield
    scene.deployment.broker.start()


@contextmanager
def broker_flushed(scene: Scene) -> Iterator[None]:
    scene.deployment.broker.flush()
    yield


@contextmanager
def broker_cut(scene: Scene) -> Iterator[None]:
    scene.deployment.runners_link.cut()
    scene.deployment.workers_link.cut()
    yield


@contextmanager
def broker_hangs_for_runners(scene: Scene) -> Iterator[None]:
    """What they send arrives, or not; they hear nothing."""
    link = scene.deployment.runners_link
    scene.rng.choice((link.silence, link.swallow_replies))()
    yield
    link.heal()


@contextmanager
def messages_lost(scene: Scene) -> Iterator[None]:
    """Some of those that wait while the workers are stopped."""
    with _workers_stopped(scene):
        yield
        broker = scene.deployment.broker
        with suppress(*broker.errors):  # Where the broker is away, so are its messages.
            broker.lose(scene.rng.randint(1, 5))


@contextmanager
def messages_doubled_and_shuffled(scene: Scene) -> Iterator[None]:
    with _workers_stopped(scene):
        yield
        broker = scene.deployment.broker
        with suppress(*broker.errors):
            broker.double_and_shuffle(scene.rng)


@contextmanager
def _workers_stopped(scene: Scene) -> Iterator[None]:
    for worker in scene.deployment.workers:
        worker.kill("SIGSTOP")
    yield
    for worker in scene.deployment.workers:
        worker.kill("SIGCONT")


@contextmanager
def ledger_locked(scene: Scene) -> Iterator[None]:
    with LockedLedger(str(scene.deployment.ledger)):
        yield


@contextmanager
def disk_full(scene: Scene) -> Iterator[None]:
    """Of the ledger alone."""
    filler = scene.deployment.disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    yield
    filler.unlink()


@contextmanager
def clocks_off(scene: Scene) -> Iterator[None]:
    """The wall clock of one process, by up to ten minutes; a worker's only back.

    What a worker takes while its clock is ahead, and never acknowledges, comes back that much later.
    """
    number = scene.rng.randrange(len(scene.deployment.clocks))
    clock = scene.deployment.clocks[number]
    clock.set_off(scene.rng.uniform(-600, 0 if number < WORKERS else 600))
    yield
    clock.set_off(0)


Fault = Callable[[Scene], AbstractContextManager[None]]

BY_TARGET: dict[str, Sequence[Fault]] = {
    "workers": (
        *(worker_killed, every_worker_killed, worker_stopped),
        *(messages_lost, messages_doubled_and_shuffled),
    ),
    "runners": (runner_killed, runner_told_to_end, runner_stopped),
    "counter": (
        *(counter_stopped, counter_flushed, counter_restarted_empty),
        *(counter_restarted_with_old_data, counter_failed_over),
    ),
    "way to the counter": (replies_lost, counter_slow, counter_cut),
    "broker": (
        *(broker_stopped, broker_restarted, broker_flushed),
        *(broker_cut, broker_hangs_for_runners),
    ),
    "ledger": (ledger_locked, disk_full),
    "clocks": (clocks_off,),
}


def possible(deployment: Deployment) -> dict[str, list[Fault]]:
    """The faults that can be made here, by target."""
    missing: set[Fault] = set()
    if not deployment.own_disk:
        missing.add(disk_full)
    if not deployment.clocks:
        missing.add(clocks_off)
    found = {target: [each for each in faults if each not in missing] for target, faults in BY_TARGET.items()}
    return {target: faults for target, faults in found.items() if faults}


def name_of(fault: Fault) -> str:
    """In words."""
    return fault.__name__.replace("_", " ")


def deal(faults: dict[str, list[Fault]], rng: random.Random, dealt: dict[str, int]) -> list[Fault]:
    """One to three faults of different targets; those that came least often first, so that each gets its share."""
    targets = rng.sample(sorted(faults), rng.choice((1, 1, 2, 3)))
    picked = []
    for target in targets:
        fewest = min(dealt.get(name_of(each), 0) for each in faults[target])
        picked.append(rng.choice([each for each in faults[target] if dealt.get(name_of(each), 0) == fewest]))
    return picked
