"""The steps that a deployment may take, and the promises that hold after each: Hypothesis chooses among them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daycap import AgentPaused, BudgetUnavailable, CapExceeded
from tests.properties.deployment import Call, Deployment, Runner
from tests.properties.world import Waiting, World

# All draws are from fixed ranges, so that the same draws are made whatever state they meet. Two calls or three fill the
# cap: the promises are decided there.
which = st.integers(0, 7)
amounts = st.sampled_from([60, 100, 40, 20, 1, 0])
percent = st.sampled_from([60, 100])
costs = st.sampled_from([0, 1, 20, 100])
overage = st.sampled_from([0, 0, 0, 0, 0, 7])
caps = st.sampled_from([100, 20, 100, 150, 0])
on_the_way = st.sampled_from(["", "", "", "request lost", "request late", "reply lost", "reply late"])
publish = st.sampled_from(["", "", "", "lost", "late", "doubled"])


class LoneWallet(RuleBasedStateMachine):
    """One wallet, and nothing goes wrong."""

    world: World
    waiting: Waiting
    wallets = 1

    @initialize(slice_seconds=st.sampled_from([0, 2]), seconds_left=st.sampled_from([600, 120, 30]))
    def begin(self, slice_seconds: float, seconds_left: int) -> None:
        self.world.begin(seconds_left)
        self.deployment = self.make_deployment()
        for _ in range(self.wallets):
            self.deployment.start(slice_seconds)
        self.waiting.meanwhile = self.deployment.answer_requests

    def make_deployment(self) -> Deployment:
        return Deployment(self.world, cap=100)

    def runner(self, number: int) -> Runner:
        alive = [runner for runner in self.deployment.runners if not runner.closed]
        return alive[number % len(alive)]

    def try_to_reserve(self, runner: Runner, estimate: int) -> Call | None:
        call = None
        try:
            call = self.deployment.reserve(runner, estimate)
        except CapExceeded as refused:
            self.deployment.check_sum(refused)
            if self.wallets == 1:
                self.deployment.check_refusal(refused)
        except (AgentPaused, BudgetUnavailable):
            pass
        self.deployment.truth.check()
        return call

    def finalize_call(self, call: Call, actual: int, over: int) -> None:
        held = call.hold.held_micros
        self.deployment.end(call, held + over if over else min(actual, held))

    @rule(asked=st.lists(st.tuples(which, amounts), min_size=1, max_size=3))
    def reserve(self, asked: list[tuple[int, int]]) -> None:
        for number, estimate in asked:
            self.try_to_reserve(self.runner(number), estimate)

    @rule(number=which, actual=costs, over=overage, send=st.booleans())
    def finalize(self, number: int, actual: int, over: int, send: bool) -> None:
        if calls := self.deployment.calls:
            call = calls[number % len(calls)]
            self.finalize_call(call, actual, over)
            if send:
                call.runner.send()

    @rule(number=which, estimate=amounts, actual=costs, over=overage, settle=st.booleans())
    def spend(self, number: int, estimate: int, actual: int, over: int, settle: bool) -> None:
        """A whole call, up to its message or to its settlement."""
        if call := self.try_to_reserve(self.runner(number), estimate):
            self.finalize_call(call, actual, over)
            call.runner.send()
            if settle and self.deployment.queue:
                self.deployment.settle([self.deployment.queue.pop()])

    @rule(number=which)
    def release(self, number: int) -> None:
        if calls := self.deployment.calls:
            self.deployment.end(calls[number % len(calls)], None)

    @rule(number=which)
    def send(self, number: int) -> None:
        self.runner(number).send()

    @rule(number=which)
    def keep(self, number: int) -> None:
        self.runner(number).tick()

    @rule(first=which, count=st.integers(1, 3))
    def settle(self, first: int, count: int) -> None:
        queue = self.deployment.queue
        if queue:
            self.deployment.settle([queue.pop(first % len(queue)) for _ in range(min(count, len(queue)))])

    @rule(seconds=st.sampled_from([1, 5, 12, 31, 60]))
    def pass_time(self, seconds: int) -> None:
        self.deployment.pass_time(seconds * 1000)

    @rule()
    def a_minute_goes_by(self) -> None:
        self.deployment.a_minute_goes_by()

    @rule(step=st.sampled_from(["open", "roll over", "expire", "reconcile"]))
    def work(self, step: str) -> None:
        if step == "open":
            self.deployment.open()
        elif step == "roll over":
            self.deployment.rollover()
        elif step == "expire":
            self.deployment.expire()
        elif step == "reconcile":
            self.deployment.reconcile()
            if not self.deployment.queue:
                self.deployment.truth.check_level()

    @rule(cap=caps)
    def set_cap(self, cap: int) -> None:
        self.deployment.set_cap(cap)

    @rule(status=st.sampled_from(["active", "active", "paused"]))
    def set_status(self, status: str) -> None:
        self.deployment.set_status(status)

    @invariant()
    def promises_hold(self) -> None:
        self.deployment.truth.check()

    def teardown(self) -> None:
        if hasattr(self, "deployment"):
            try:
                self.deployment.come_to_rest()
            finally:
                self.deployment.close()


class FaultyWallets(LoneWallet):
    """Two wallets, one of threads and one of an event loop, and everything goes wrong."""

    wallets = 2

    @rule(number=which, estimate=amounts, fault=on_the_way)
    def reserve_over_a_bad_network(self, number: int, estimate: int, fault: str) -> None:
        runner = self.runner(number)
        runner.counter.fault = fault
        self.try_to_reserve(runner, estimate)
        runner.counter.fault = ""

    @rule(number=which, share=percent, lost=st.booleans(), minute=st.booleans())
    def the_answer_comes_after_much_else(self, number: int, share: int, lost: bool, minute: bool) -> None:
        """For the guard that throws late replies away: a sync is under way while the keeper sends others.

        What is held before has the lease renewed meanwhile.
        """
        estimate = self.deployment.make_room() * share // 100
        one, other = self.runner(number), self.runner(number + 1)
        self.try_to_reserve(one, 20)

        def meanwhile() -> None:
            if lost:
                self.deployment.delete()
            if minute:
                self.deployment.a_minute_goes_by()
            self.try_to_reserve(other, estimate)

        one.counter.fault, one.counter.meanwhile = "reply late", meanwhile
        self.try_to_reserve(one, estimate)
        one.counter.fault, one.counter.meanwhile = "", lambda: None

    @rule(number=which, fault=on_the_way)
    def keep_over_a_bad_network(self, number: int, fault: str) -> None:
        runner = self.runner(number)
        runner.counter.fault = fault
        runner.tick()
        runner.counter.fault = ""

    @rule(number=which, away=st.booleans())
    def lose_the_broker(self, number: int, away: bool) -> None:
        runner = self.runner(number)
        runner.transport.away = away
        runner.send()

    @rule(number=which, killed=st.booleans())
    def end_a_wallet(self, number: int, killed: bool) -> None:
        if killed:
            self.deployment.kill(self.runner(number))
        else:
            self.deployment.close_wallet(self.runner(number))
        self.deployment.start(2)

    @rule(number=which, share=percent, released=st.booleans())
    def pause_a_wallet(self, number: int, share: int, released: bool) -> None:
        """For the local deadline: it stands still for longer than its leases live, and others take what they can."""
        estimate = self.deployment.make_room() * share // 100
        one, other = self.runner(number), self.runner(number + 1)
        if (call := self.try_to_reserve(one, estimate)) and released:
            self.deployment.end(call, None)
        self.deployment.a_minute_goes_by(paused=one)
        for runner in (other, one):
            self.try_to_reserve(runner, estimate)

    @rule(number=which, fate=st.sampled_from(["lost", "doubled", "settled twice", "settled, not published"]))
    def deliver_badly(self, number: int, fate: str) -> None:
        if queue := self.deployment.queue:
            message = queue.pop(number % len(queue))
            if fate == "doubled":
                queue += [message, message]
            elif fate == "settled twice":
                self.deployment.settle([message])
                self.deployment.settle([message])
            elif fate == "settled, not published":
                # The worker died before it acknowledged, too.
                self.deployment.settle([message], publish=False)
                queue.append(message)

    @rule(number=which, fates=st.lists(st.sampled_from(["lost", "settled", "waits"]), min_size=2, max_size=3))
    def calls_whose_messages_fare_differently(self, number: int, fates: list[str]) -> None:
        """For the guard that takes as settled only what is before the first gap, and for sending again."""
        self.deployment.make_room()
        for fate in fates:
            runner, before = self.runner(number), len(self.deployment.queue)
            if call := self.try_to_reserve(runner, 20):
                self.finalize_call(call, 20, 0)
                runner.send()
                messages = self.deployment.queue[before:]
                if fate != "waits":
                    del self.deployment.queue[before:]
                if fate == "settled" and messages:
                    self.deployment.settle(messages)
        self.runner(number).tick()

    @rule(fault=publish, number=which, cap=caps, step=st.sampled_from(["settle", "open", "expire", "cap"]))
    def publish_over_a_bad_network(self, fault: str, number: int, cap: int, step: str) -> None:
        self.deployment.publisher.fault = fault
        if step == "settle" and (queue := self.deployment.queue):
            self.deployment.settle([queue.pop(number % len(queue))])
        elif step == "open":
            self.deployment.open()
        elif step == "expire":
            self.deployment.expire()
        elif step == "cap":
            self.deployment.set_cap(cap)
        self.deployment.publisher.fault = ""

    @rule(number=which)
    def what_was_late_arrives(self, number: int) -> None:
        if late := self.deployment.late:
            late.pop(number % len(late))()

    @rule(number=which, estimate=amounts)
    def another_takes_what_one_hands_back(self, number: int, estimate: int) -> None:
        """For the guard that takes free money out of the book before it is sent."""
        one, other = self.runner(number), self.runner(number + 1)
        if call := self.try_to_reserve(one, estimate):
            self.deployment.end(call, None)
        one.wallet._renewer.renew(hand_back=True)
        for runner in (other, one):
            self.try_to_reserve(runner, estimate)

    @rule(number=which, low=st.sampled_from([20, 0]), estimate=amounts)
    def lower_the_cap_for_a_while(self, number: int, low: int, estimate: int) -> None:
        """For the guard that counts as used what was drawn though it was not charged."""
        self.deployment.make_room()
        before = self.deployment.cap()
        if call := self.try_to_reserve(self.runner(number), estimate):
            self.finalize_call(call, estimate, 0)
            call.runner.send()
        self.deployment.set_cap(low)
        while queue := self.deployment.queue:
            self.deployment.settle([queue.pop(0)])
        self.deployment.set_cap(before)
        self.try_to_reserve(self.runner(number), estimate)

    @rule(cap=caps, later=caps)
    def a_publish_overtakes_another(self, cap: int, later: int) -> None:
        """For the guard that ignores an older seq."""
        self.deployment.publisher.fault = "late"
        self.deployment.set_cap(cap)
        self.deployment.publisher.fault = ""
        self.deployment.set_cap(later)
        self.deployment.truth.check()
        self.deployment.late.pop()()

    @rule()
    def copy_the_counter(self) -> None:
        self.deployment.copy()

    @rule(
        number=which,
        share=percent,
        how=st.sampled_from(["flush", "fail over", "delete a key", "restart"]),
        minute=st.booleans(),
    )
    def lose_the_counter(self, number: int, share: int, how: str, minute: bool) -> None:
        """For the fence, the run id and putting back: what one holds by then, no other gets, now or a minute later."""
        estimate = self.deployment.make_room() * share // 100
        if how == "fail over":
            self.deployment.copy()
        self.try_to_reserve(self.runner(number), estimate)
        if how == "flush":
            self.deployment.delete()
        elif how == "delete a key" and (keys := sorted(self.world.client.keys())):
            self.deployment.delete(keys[number % len(keys)])
        elif how == "fail over":
            self.deployment.restart(self.deployment.copies[-1])
        elif how == "restart":
            copies = self.deployment.copies
            self.deployment.restart(copies[-1 - number % len(copies)])
        if minute:
            self.deployment.a_minute_goes_by()
        self.try_to_reserve(self.runner(number + 1), estimate)
