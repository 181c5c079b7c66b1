"""The sender: what is put is sent, in order and however often the broker refuses, and nobody waits for it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from daycap.delivery.sender import Sender
from daycap.delivery.transport import Transport
from daycap.errors import BudgetUnavailable
from daycap.protocol.wire import FinalizeEvent
from daycap.settings import Settings
from daycap.signal_safe import Signal
from daycap.wallet.sync import Wallet
from tests.spine import wait_for
from tests.unit.conftest import DAY, made

NAME = "daycap-sender"
SOON_S = 5.0
"""Each of these things takes a millisecond."""


def soon(condition: Callable[[], object]) -> None:
    wait_for(condition, SOON_S)


class Broker(Transport):
    """Keeps what it was given. It can be told to hang, or to refuse."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.opened: list[str] = []
        self.said: list[str] = []
        self.messages = 7
        self.looks = 0
        self.refuses = 0
        """How many more times it refuses."""
        self.refused = 0
        self.hears = threading.Event()
        self.hears.set()
        self.asked = threading.Semaphore(0)

    @property
    def events(self) -> list[int]:
        return [number for message in self.sent for number in message]

    def send(self, events: Sequence[FinalizeEvent]) -> None:
        self._take()
        self.sent.append([event.number for event in events])

    def open_day(self, agent: str, day: str) -> None:
        self._take()
        self.opened.append(agent)

    def backlog(self) -> int:
        self.looks += 1
        self._take()
        return self.messages

    def _take(self) -> None:
        self.asked.release()
        self.hears.wait()
        if self.refuses:
            self.refuses -= 1
            self.refused += 1
            raise ConnectionError("refused")

    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        pass

    def forget(self) -> None:
        self.said.append("forget")

    def close(self) -> None:
        self.said.append("close")


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def sender(broker: Broker) -> Iterator[Sender]:
    sender = Sender(broker)
    yield sender
    broker.hears.set()
    broker.refuses = 0
    sender.close(SOON_S)
    soon(lambda: not threads())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def hang(broker: Broker, sender: Sender) -> None:
    """The broker has been given event 1, and does not say that it has it."""
    broker.hears.clear()
    sender.put(made(1))
    assert broker.asked.acquire(timeout=SOON_S)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the sender waits before it tries again. It takes no time here."""
    waited: list[float] = []
    wait = Signal.wait

    def noted(event: Signal, timeout: float | None = None) -> bool:
        if timeout is None or threading.current_thread().name != NAME:
            return wait(event, timeout)
        waited.append(timeout)
        return event.is_set()

    monkeypatch.setattr(Signal, "wait", noted)
    return waited


# --- sending ----------------------------------------------------------------------------------------------


def test_events_are_sent_as_they_come(broker: Broker, sender: Sender) -> None:
    assert (sender.waiting, threads()) == (0, [])
    for number in (1, 2, 3):
        sender.put(made(number))
        soon(lambda: sender.waiting == 0)
        soon(lambda n=number: broker.events[-1:] == [n])  # type: ignore[misc]
    assert broker.sent == [[1], [2], [3]]
    assert [thread.daemon for thread in threads()] == [True], "it keeps no process from ending"
    assert broker.looks == 0, "nobody asked for the backlog"


def test_a_publisher_that_has_nothing_to_do_takes_no_processor(broker: Broker, sender: Sender) -> None:
    sender.put(made(1))
    soon(lambda: sender.waiting == 0)
    (thread,) = threads()
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)

    end_s, before_s = time.monotonic() + 0.5, time.clock_gettime(clock)
    soon(lambda: time.monotonic() > end_s)

    assert time.clock_gettime(clock) - before_s < 0.05


def test_what_gathers_during_a_send_goes_with_the_next_ones(broker: Broker, sender: Sender) -> None:
    hang(broker, sender)
    for number in range(2, 1_202):
        sender.put(made(number))
    assert sender.waiting == 1_201

    broker.hears.set()

    soon(lambda: sender.waiting == 0)
    assert [len(message) for message in broker.sent] == [1, 500, 500, 200]
    assert broker.events == list(range(1, 1_202))


def test_what_is_resent_is_sent(broker: Broker, sender: Sender) -> None:
    sender.resend([made(1), made(2)])
    soon(lambda: broker.events == [1, 2])
    sender.resend([made(1)])
    soon(lambda: broker.events == [1, 2, 1])


def test_what_the_broker_refuses_is_sent_again_in_order(broker: Broker, sender: Sender, waits: list[float]) -> None:
    hang(broker, sender)
    for number in (2, 3):
        sender.put(made(number))
    broker.refuses = 3

    broker.hears.set()

    soon(lambda: broker.events == [1, 2, 3])
    assert sender.failures == 3
    soon(lambda: sender.trouble is None)


def test_trouble_is_told_while_it_lasts(broker: Broker, sender: Sender) -> None:
    broker.refuses = 10**9
    sender.put(made(1))
    sender.put(made(2))

    soon(lambda: sender.failures)
    assert isinstance(sender.trouble, ConnectionError)
    assert sender.waiting == 2
    broker.refuses = 0

    soon(lambda: sender.trouble is None)
    assert (sender.waiting, broker.events) == (0, [1, 2])


def test_a_broker_that_is_away_is_tried_ever_more_seldom(broker: Broker, sender: Sender, waits: list[float]) -> None:
    broker.refuses = 8
    sender.put(made(1))
    soon(lambda: broker.events == [1] and sender.trouble is None)
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]

    # And after a success from the beginning
    broker.refuses = 1
    sender.put(made(2))
    soon(lambda: broker.events == [1, 2])
    assert waits[8:] == [0.05]


def test_a_broker_that_is_away_for_long_does_not_fill_the_log(
    broker: Broker, sender: Sender, waits: list[float]
) -> None:
    warned_at: list[int] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned_at.append(sender.failures)
    logging.getLogger("daycap").addHandler(handler)
    broker.refuses = 2_050

    sender.put(made(1))

    try:
        soon(lambda: broker.events == [1])
    finally:
        logging.getLogger("daycap").removeHandler(handler)
    assert warned_at == [1, 10, 100, 1_000, 2_000]


def test_event_is_kept_when_no_thread_starts(broker: Broker, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        sender.put(made(1))
        with pytest.raises(RuntimeError):
            sender.start()

    sender.put(made(2))

    soon(lambda: broker.events == [1, 2])


# --- days and the backlog ---------------------------------------------------------------------------------


def test_a_day_is_asked_for_once_while_it_waits_and_before_the_events(broker: Broker, sender: Sender) -> None:
    hang(broker, sender)
    sender.put(made(2))
    for agent in ("agent-7", "agent-8", "agent-7"):
        sender.open_day(agent, DAY)

    broker.hears.set()

    soon(lambda: broker.events == [1, 2])
    assert broker.opened == ["agent-7", "agent-8"]
    sender.open_day("agent-7", DAY)
    soon(lambda: broker.opened == ["agent-7", "agent-8", "agent-7"])


def test_a_day_whose_request_was_refused_is_asked_for_again(broker: Broker, sender: Sender, waits: list[float]) -> None:
    broker.refuses = 1
    sender.open_day("agent-7", DAY)
    soon(lambda: broker.opened == ["agent-7"])
    assert sender.failures == 1


def test_the_backlog_is_what_the_broker_says_now(broker: Broker, sender: Sender) -> None:
    assert sender.backlog(SOON_S) == 7
    broker.messages = 8
    assert sender.backlog(SOON_S) == 8
    broker.refuses = 1
    assert sender.backlog(SOON_S) is None, "what it said before is not what it says now"
    assert (sender.failures, sender.trouble) == (0, None)
    assert sender.backlog(SOON_S) == 8


def test_backlog_is_told_while_the_broker_hangs(broker: Broker, sender: Sender) -> None:
    assert sender.backlog(SOON_S) == 7
    assert broker.asked.acquire(timeout=SOON_S)
    broker.hears.clear()
    assert sender.backlog(0.01) is None

    # What it says late is no answer to the next question
    assert broker.asked.acquire(timeout=SOON_S)
    broker.messages = 9
    broker.hears.set()
    assert sender.backlog(SOON_S) == 9


# --- the end ----------------------------------------------------------------------------------------------


def test_closing_sends_what_waits_and_ends_the_thread(broker: Broker, sender: Sender) -> None:
    hang(broker, sender)
    for number in (2, 3):
        sender.put(made(number))

    closing = threading.Thread(target=sender.close, args=(SOON_S,))
    closing.start()
    broker.hears.set()
    closing.join()

    assert (broker.events, broker.said, threads()) == ([1, 2, 3], ["close"], [])


def test_closing_a_publisher_that_has_nothing_to_do_ends_its_thread(broker: Broker, sender: Sender) -> None:
    sender.put(made(1))
    soon(lambda: broker.events == [1])
    sender.close(SOON_S)
    assert threads() == []


def test_closing_does_not_wait_for_a_broker_that_hangs(broker: Broker, sender: Sender) -> None:
    hang(broker, sender)

    sender.close(0.01)

    assert (broker.events, broker.said) == ([], ["close"])
    assert sender.waiting == 1


def test_closing_does_not_wait_for_a_broker_that_refuses(broker: Broker, sender: Sender) -> None:
    broker.refuses = 10**9
    sender.put(made(1))
    soon(lambda: sender.failures > 5)  # It waits for a second and more now.

    sender.close(SOON_S)

    assert threads() == []
    assert sender.waiting == 1


@pytest.mark.parametrize("what", ["event", "opening"])
def test_what_comes_while_it_closes_and_had_sent_all_is_sent(broker: Broker, sender: Sender, what: str) -> None:
    """It has sent all, and has still to hear the backlog that somebody wanted to know."""
    broker.hears.clear()
    assert sender.backlog(0.01) is None
    assert broker.asked.acquire(timeout=SOON_S)
    sender.close(0.01)

    if what == "event":
        sender.put(made(1))
    else:
        sender.open_day("agent-7", DAY)
    broker.hears.set()

    soon(lambda: (broker.events, broker.opened) != ([], []))
    soon(lambda: not threads())


def test_what_is_put_after_the_close_is_still_sent(broker: Broker, sender: Sender) -> None:
    sender.put(made(1))
    sender.close(SOON_S)

    sender.put(made(2))
    soon(lambda: broker.events == [1, 2])
    soon(lambda: not threads())
    sender.put(made(3))
    soon(lambda: broker.events == [1, 2, 3])


def test_a_forked_child_sends_nothing_of_its_parents(broker: Broker, sender: Sender) -> None:
    hang(broker, sender)
    for number in (2, 3):
        sender.put(made(number))
    sender.open_day("agent-7", DAY)

    if (child := os.fork()) == 0:
        signal.alarm(20)  # It ends, come what may.
        try:
            sender.forget()
            broker.hears = threading.Event()
            broker.hears.set()
            sender.put(made(4))
            soon(lambda: broker.events)
            os._exit((broker.events, broker.opened, broker.said, sender.failures) != ([4], [], ["forget"], 0))
        finally:
            os._exit(2)
    broker.hears.set()

    assert os.waitpid(child, 0)[1] == 0
    soon(lambda: broker.events == [1, 2, 3])


def test_sender_does_chores_before_each_message() -> None:
    broker, done_by = Broker(), list[tuple[str, int]]()
    sender = Sender(broker, lambda: done_by.append((threading.current_thread().name, len(broker.sent))))
    for number in (1, 2):
        sender.put(made(number))
        soon(lambda number=number: len(broker.sent) == number)  # type: ignore[misc]
    sender.close(SOON_S)

    assert done_by == [(NAME, 0), (NAME, 1)]


# --- what is said of a failure ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "openings", "said"),
    [
        (1, 0, "1 events wait; the broker did not accept them: ConnectionError"),
        (0, 1, "1 requests to open a day wait; the broker did not answer: ConnectionError"),
        (1, 2, "1 events and 2 requests to open a day wait; the broker did not accept them: ConnectionError"),
    ],
)
def test_a_failure_names_what_waits(
    broker: Broker, sender: Sender, caplog: pytest.LogCaptureFixture, events: int, openings: int, said: str
) -> None:
    broker.hears.clear()
    broker.refuses = 1
    for number in range(openings):
        sender.open_day(f"agent-{number}", DAY)
    for number in range(events):
        sender.put(made(number))
    broker.hears.set()
    soon(lambda: sender.failures)
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [said]


def test_without_a_broker_the_ledger_is_named(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(ledger_url="postgresql://127.0.0.1:1/away", open_timeout_seconds=0.1)
    with Wallet.from_settings(settings) as wallet, pytest.raises(BudgetUnavailable):
        wallet.reserve("agent-7", 1)
    said = [message for message in caplog.messages if "requests to open a day" in message]
    assert said == [message for message in said if "the ledger did not answer" in message] != []
    assert not [message for message in caplog.messages if "the broker did not" in message]
