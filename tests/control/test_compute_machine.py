"""Whatever happens to containers, in whatever order, ends in agreement.

Hypothesis makes up the order: requests of users (several at once), what the world does
by itself, news of it that come late, again or never, calls that fail before or after
their work or hang, a control plane that dies in the middle. Then nothing fails any more
and time goes by; and what is in the records, what is in the world and what the users
wished must be the same. A failure prints the blob that replays it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from compute_sim import USERS, Stepped
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from share import share

from control.compute.backend import Spec
from control.compute.reconcile.driver import (
    BACKOFF_SECONDS_MAX,
    BUGS_MAX,
    LOST_SECONDS,
    RECONCILE_SECONDS,
    RERUNS_MAX,
)
from control.compute.reconcile.machine import LOST, STOPS_BY_ITSELF
from control.compute.rows import Container
from control.quota.limits import Limits

#: From each status to those that may follow, as the events have it.
LEGAL = {
    "": {"pending"},
    "pending": {"pending", "initializing", "stopped", "failed", "deleting"},
    "initializing": {"initializing", "pending", "running", "stopped", "failed", "deleting"},
    "running": {"running", "initializing", "pending", "stopped", "failed", "deleting"},
    "stopped": {"stopped", "pending", "failed", "deleting"},
    "failed": {"failed", "pending", "initializing", "stopped", "deleting"},
    "deleting": set(),
}
REQUESTS = ["start", "stop", "delete", "mount", "unmount", "ssh", "open", "close"]
FAULTS = ["unavailable", "impossible", "bug", "hang"]

#: Longer than the driver waits for anything, its reconciler included.
LONG_SECONDS = 400.0

containers_ = st.integers(0, 5)


class Anything(RuleBasedStateMachine):
    """News may come late, again or never: it takes the reconciler to make up for that."""

    news_are_reliable = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="compute-"))
        self.run = Stepped(self.directory, math.inf if self.news_are_reliable else 300.0)
        self.sim, self.world = self.run.sim, self.run.sim.world
        #: What each container's user wished last: "running", "stopped" or "deleted".
        self.wished: dict[str, str] = {}
        self.heard = 0
        self.statuses: dict[str, str] = {}
        self.owners: dict[str, str] = {}

    @initialize(forgets=st.booleans())
    def begin(self, forgets: bool) -> None:
        self.world.forgets = forgets
        self.create("ada", 1)

    def some(self, number: int) -> str:
        ids = self.sim.ids
        return ids[-1 - number % len(ids)]

    # --- users --------------------------------------------------------------------------

    @rule(user=st.sampled_from(USERS), count=st.integers(1, 5))
    def create(self, user: str, count: int) -> None:
        before = [id_ for id_, wish in self.wished.items() if wish != "deleted"]
        own = sum(self.owners[id_] == user for id_ in before)
        # Those that are being deleted count until they are gone, which may be now.
        rows = self.sim.rows().values()
        held = sum(row.user_id == user for row in rows)
        made = self.run(lambda: self.sim.create(user, count))
        fewest, most = (
            min(count, Limits().containers - counted) if self.world.is_up else 0
            for counted in (held, own)
        )
        assert fewest <= made <= most, f"{made} of {count} were made, with {own} of {held} kept"
        for id_ in self.sim.ids[len(self.sim.ids) - made :]:
            self.wished[id_] = "running"
            self.owners[id_] = user

    @precondition(lambda self: self.sim.ids)
    @rule(what=st.sampled_from(REQUESTS), number=containers_)
    def ask(self, what: str, number: int) -> None:
        id_ = self.some(number)
        done = self.run(lambda: self.sim.ask(what, id_))
        if self.wished[id_] == "deleted":
            assert not done or what == "delete", "it was changed while it was being deleted"
        else:
            assert done
        if done and what in ("start", "stop", "delete"):
            self.wished[id_] = {"start": "running", "stop": "stopped"}.get(what, "deleted")

    @rule(user=st.sampled_from(USERS))
    def delete_user(self, user: str) -> None:
        self.run(lambda: self.sim.delete_user(user))
        for id_, owner in self.owners.items():
            if owner == user:
                self.wished[id_] = "deleted"

    # --- the world ----------------------------------------------------------------------

    def thing(self, number: int) -> str | None:
        ids = sorted(self.world.things)
        return ids[number % len(ids)] if ids else None

    @rule(number=containers_, phase=st.sampled_from(["initializing", "running"]))
    def go_on(self, number: int, phase: Any) -> None:
        id_ = self.thing(number)
        if id_ is not None and self.world.things[id_].phase in ("pending", "initializing"):
            self.world.move(id_, phase)

    @rule()
    def all_goes_on(self) -> None:
        self.run(self.sim.go_on)

    @rule(number=containers_, phase=st.sampled_from(["stopped", "failed", "pending"]))
    def fall_over(self, number: int, phase: Any) -> None:
        id_ = self.thing(number)
        if id_ is not None and self.world.things[id_].phase not in ("stopped", "failed"):
            self.world.excused.add(id_)
            self.world.move(id_, phase)

    @rule(number=containers_)
    def lose(self, number: int) -> None:
        """Somebody removes it behind our back."""
        id_ = self.thing(number)
        if id_ is not None:
            self.world.excused.add(id_)
            del self.world.things[id_]
            self.world.changed(id_)

    @rule(number=containers_)
    def lose_exposure(self, number: int) -> None:
        """Somebody removes what lets users in, and others not."""
        id_ = self.thing(number)
        if id_ is not None:
            self.world.lose_exposure(id_)

    @rule(count=st.integers(1, 4))
    def news(self, count: int) -> None:
        self.run(self.in_the_loop(lambda: self.world.deliver(count)))

    @precondition(
        # Of one that nobody can distinguish from news of now nothing true would follow.
        lambda self: self.world.reported and not (self.news_are_reliable or self.world.forgets)
    )
    @rule(number=st.integers(0, 30))
    def old_news_again(self, number: int) -> None:
        reported = self.world.reported
        self.run(self.in_the_loop(lambda: self.world.report(reported[number % len(reported)])))

    @precondition(lambda self: not self.news_are_reliable)
    @rule()
    def news_are_lost(self) -> None:
        self.world.news.clear()

    @precondition(lambda self: not self.news_are_reliable)
    @rule()
    def relist(self) -> None:
        self.run(self.in_the_loop(self.world.relist))

    @rule(fault=st.sampled_from(FAULTS), late=st.booleans(), count=st.integers(1, 6))
    def fail(self, fault: str, late: bool, count: int) -> None:
        self.world.faults += [f"late-{fault}" if late else fault] * count

    @rule(is_up=st.booleans())
    def outage(self, is_up: bool) -> None:
        self.world.is_up = is_up

    # --- time and death -----------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.2, 1.0, 10.0]))
    def calls_take(self, seconds: float) -> None:
        self.world.call_seconds = seconds

    @rule()
    def blink(self) -> None:
        self.run(self.sim.blink)

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0, 6.0, 35.0, 130.0, 301.0]))
    def wait(self, seconds: float) -> None:
        self.run(lambda: self.sim.wait(seconds))

    @rule()
    def restart(self) -> None:
        self.run(self.sim.restart)

    def in_the_loop(self, act: Any) -> Any:
        async def command() -> None:
            act()
            await self.sim.blink()

        return command

    # --- what is always so --------------------------------------------------------------

    @invariant()
    def statuses_follow_the_diagram(self) -> None:
        for event in self.sim.events():
            if event.number <= self.heard:
                continue
            self.heard = event.number
            before = self.statuses.get(event.container_id, "")
            if event.kind == "status":
                assert event.status in LEGAL[before], (event, before)
                self.statuses[event.container_id] = event.status
            elif event.kind == "deleted":
                assert before == "deleting", event
                self.statuses[event.container_id] = "deleted"

    @invariant()
    def what_is_said_to_run_has_run(self) -> None:
        for row in self.sim.rows().values():
            if row.status == "running":
                assert (row.id, row.generation) in self.world.ran

    @invariant()
    def calls_for_one_container_never_overlap(self) -> None:
        assert self.world.overlaps == []

    @invariant()
    def nobody_has_more_than_he_may(self) -> None:
        rows = self.sim.rows().values()
        for user in USERS:
            assert sum(row.user_id == user for row in rows) <= Limits().containers

    # --- the end ------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.settle()
            self.statuses_follow_the_diagram()
            self.calls_for_one_container_never_overlap()
            self.agree()
        finally:
            self.run.close()
            shutil.rmtree(self.directory)

    def settle(self) -> None:
        self.run(lambda: self.sim.settle(LONG_SECONDS, relist=True))

    def agree(self) -> None:
        rows, things = self.sim.rows(), self.world.things
        kept = {id_ for id_, wish in self.wished.items() if wish != "deleted"}
        assert rows.keys() == kept, "the records have what nobody wished, or not all of it"
        assert things.keys() <= kept, "something was leaked"
        for id_, row in rows.items():
            assert row.wanted == self.wished[id_]
            assert self.statuses[id_] == row.status, "not reported"
            self.agree_on(row)

    def agree_on(self, row: Container) -> None:
        thing = self.world.things.get(row.id)
        if row.status == "running":
            assert thing is not None, "it is lost, and nobody knows"
            assert (thing.phase, thing.generation) == ("running", row.generation)
            assert thing.spec.mount_paths == row.mount_paths
            self.agree_on_ports(row, thing.exposed)
        elif row.status == "stopped":
            assert thing is None or thing.phase == "stopped"
        else:
            assert row.status == "failed", "it should have come to an end"
            assert row.reason
            assert row.id in self.world.excused, f"nothing went wrong, but: {row.reason}"
            if row.reason == LOST:
                assert thing is None, "it is there"
        wanted = {"running": ("running", "failed"), "stopped": ("stopped", "failed")}
        assert row.status in wanted[row.wanted]

    def agree_on_ports(self, row: Container, exposed: Spec | None) -> None:
        assert exposed is not None
        assert exposed.ports == self.sim.spec(row).ports
        assert exposed.ssh_enabled == row.ssh_enabled


class Promptly(Anything):
    """News come late, but they come. Then all is done as soon as what is being waited for
    is over: nothing is left for the reconciler."""

    news_are_reliable = True

    def settle(self) -> None:
        self.run(lambda: self.sim.settle(BACKOFF_SECONDS_MAX + LOST_SECONDS + 1, relist=False))

    def agree_on(self, row: Container) -> None:
        thing = self.world.things.get(row.id)
        was_removed = not row.seen if thing is None else thing.generation == 0
        if row.status == "pending" and was_removed:
            # Somebody removed it before it was ever seen: only a look at everything shows it.
            assert row.id in self.world.excused
        else:
            super().agree_on(row)

    def agree_on_ports(self, row: Container, exposed: Spec | None) -> None:
        if row.id not in self.world.closed:  # else the backend has refused them
            super().agree_on_ports(row, exposed)


@pytest.fixture
def stepped(tmp_path: Path) -> Iterator[Callable[..., Stepped]]:
    """Makes a simulation in which ada's containers run."""
    with contextlib.ExitStack() as stack:

        def make(count: int = 1, reconcile_seconds: float = math.inf) -> Stepped:
            run = Stepped(tmp_path, reconcile_seconds)
            stack.callback(run.close)
            assert run(lambda: run.sim.create("ada", count)) == count
            run(lambda: run.sim.settle(1.0, relist=False))
            return run

        yield make


@pytest.mark.parametrize(("is_reported", "seconds"), [(True, 1.0), (False, 2 * RECONCILE_SECONDS)])
def test_what_lets_users_in_comes_back_by_itself(
    stepped: Callable[..., Stepped], is_reported: bool, seconds: float
) -> None:
    """At once if its loss is seen, else before long; for each of several."""
    run = stepped(3, RECONCILE_SECONDS)
    sim, world = run.sim, run.sim.world

    async def lose() -> None:
        for id_ in sim.ids:
            world.lose_exposure(id_)
        if not is_reported:
            world.news.clear()
        world.deliver()

    for _ in range(2):
        assert all(thing.exposed for thing in world.things.values())
        run(lose)
        run(lambda: sim.wait(seconds))
    assert all(thing.exposed for thing in world.things.values())


def test_what_is_lost_while_it_is_made_is_made_again(stepped: Callable[..., Stepped]) -> None:
    run = stepped()
    sim, world = run.sim, run.sim.world

    async def lose_late() -> bool:
        (id_,) = sim.ids
        world.call_seconds = 1.0
        world.lose_exposure(id_)
        world.deliver()
        await trio.sleep(1.5)  # the call has done its work, and has not returned
        was_exposed = world.things[id_].exposed is not None
        world.lose_exposure(id_)
        world.deliver()
        return was_exposed

    assert run(lose_late)
    run(lambda: sim.wait(5.0))
    assert all(thing.exposed for thing in world.things.values())


def test_a_stop_that_is_refused_is_tried_until_it_stops(stepped: Callable[..., Stepped]) -> None:
    run = stepped()
    sim, world = run.sim, run.sim.world
    (id_,) = sim.ids
    world.faults = ["impossible"] * 3
    assert run(lambda: sim.ask("stop", id_))
    run(lambda: sim.wait(LONG_SECONDS))
    assert (sim.rows()[id_].status, world.things[id_].phase) == ("stopped", "stopped")


def test_what_stops_again_and_again_by_itself_is_not_run_forever(
    stepped: Callable[..., Stepped],
) -> None:
    run = stepped()
    sim, world = run.sim, run.sim.world
    (id_,) = sim.ids

    async def stop_by_itself() -> str:
        world.move(id_, "stopped")
        world.deliver()
        await sim.go_on()
        return sim.rows()[id_].status

    ends = [run(stop_by_itself) for _ in range(RERUNS_MAX + 1)]
    assert ends == ["running"] * RERUNS_MAX + ["failed"]
    assert sim.rows()[id_].reason == STOPS_BY_ITSELF


def test_what_goes_for_a_moment_is_not_lost_and_what_stays_away_is(
    stepped: Callable[..., Stepped],
) -> None:
    run = stepped()
    sim, world = run.sim, run.sim.world
    (id_,) = sim.ids

    async def go(seconds: float) -> None:
        thing = world.things.pop(id_)
        world.changed(id_)
        world.deliver()
        await trio.sleep(seconds)
        world.things[id_] = thing
        world.changed(id_)
        world.deliver()

    for seconds, after in (*[(1.0, ("running", ""))] * 2, (6.0, ("failed", LOST))):
        run(partial(go, seconds))
        [row] = sim.rows().values()
        assert (row.status, row.reason) == after
        run(lambda: sim.wait(2 * LOST_SECONDS))


def test_a_call_that_meets_a_bug_each_time_is_given_up(stepped: Callable[..., Stepped]) -> None:
    run = stepped(0)
    sim, world = run.sim, run.sim.world
    world.faults = ["bug"] * 2 * BUGS_MAX
    run(lambda: sim.create("ada", 1))
    run(lambda: sim.wait(LONG_SECONDS))
    assert [row.status for row in sim.rows().values()] == ["failed"]
    assert world.bugs == dict.fromkeys(sim.ids, BUGS_MAX)


Anything.TestCase.settings = Promptly.TestCase.settings = settings(
    max_examples=share(60),
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnything = Anything.TestCase
TestPromptly = Promptly.TestCase
