"""Who counts for ``replicas_before_ack``: the rules, and a model of masters and shadows that
keep them, in steps as small as they can be distinguished, in any order.

What the model must show: no term begins without what was acknowledged in the ones before.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gfs.master.metadata import terms
from gfs.master.metadata.operations import (
    Operation,
    ShadowForgotten,
    ShadowsChanged,
    ShadowsChanging,
    TermBegun,
    apply,
)
from gfs.master.metadata.store import Change, Counted, State
from gfs.master.shadows import quorum
from gfs.master.shadows.quorum import acknowledged_up_to


def state(counted: Counted, change: Change | None = None) -> State:
    return State(counted=counted, counted_next=change)


def test_what_is_acknowledged_is_on_the_disks_of_those_that_count() -> None:
    two = Counted(["a", "b", "c"], 2)
    assert acknowledged_up_to(state(Counted()), {}) == math.inf
    assert acknowledged_up_to(state(two), {"a": 7, "x": 9}) == -1
    assert acknowledged_up_to(state(two), {"a": 7, "x": 9, "b": 5, "c": 2}) == 5


def test_while_that_changes_both_must_have_it() -> None:
    change = Change(Counted(["b", "c"], 1), 10)
    both = state(Counted(["a"], 1), change)
    assert acknowledged_up_to(both, {"c": 20}) == -1
    assert acknowledged_up_to(both, {"a": 8, "c": 20}) == 8
    assert acknowledged_up_to(both, {"a": 20}) == 9
    assert acknowledged_up_to(both, {"a": 20, "c": 15}) == 15
    assert not quorum.is_agreed(both, {"a": 9, "b": 20, "c": 20})
    assert quorum.is_agreed(both, {"a": 10})
    # Nobody is waited for any more, or was: until they agree, those that are are.
    assert acknowledged_up_to(state(Counted(["a"], 1), Change(Counted(), 10)), {"a": 12}) == 12
    assert acknowledged_up_to(state(Counted(), Change(Counted(["a"], 1), 10)), {"a": 12}) == 12
    assert acknowledged_up_to(state(Counted(), Change(Counted(["a"], 1), 10)), {}) == 9
    assert quorum.is_agreed(state(Counted(), Change(Counted(["a"], 1), 10)), {})
    assert not quorum.is_agreed(state(Counted()), {})


def test_who_has_to_be_asked() -> None:
    assert quorum.missing(state(Counted()), ["a"]) is None
    assert quorum.missing(state(Counted([], 1)), ["a"]) is None
    assert quorum.missing(state(Counted(["a", "b"], 1)), ["a"]) == ["b"]
    assert quorum.missing(state(Counted(["a", "b"], 1)), ["a", "b"]) == []
    assert quorum.missing(state(Counted(["a", "b"], 2)), ["a"]) == []
    # Only one of two that are wanted is there: it agreed to all, but acknowledged nothing.
    assert quorum.missing(state(Counted(["a"], 2)), []) == ["a"]
    both = state(Counted(["a", "b"], 1), Change(Counted(["b", "c"], 1), 10))
    assert quorum.missing(both, ["a", "b"]) == ["c"]
    assert quorum.missing(both, ["b", "c"]) == ["a"]
    assert quorum.missing(both, ["a", "b", "c"]) == []
    assert quorum.missing(state(Counted(["a"], 1), Change(Counted(), 10)), ["a"]) is None


def test_who_has_to_witness() -> None:
    assert quorum.missing_witnesses(state(Counted()), []) == []
    assert quorum.missing_witnesses(state(Counted(["a", "b"], 1)), ["b"]) == []
    assert quorum.missing_witnesses(state(Counted(["a", "b"], 2)), ["b"]) == ["a"]


def test_whoever_follows_is_to_count() -> None:
    assert quorum.proposed(Counted(["a"], 1), 0, ["a", "b"]) == Counted()
    assert quorum.proposed(Counted(["a"], 1), 2, ["b", "a"]) == Counted(["a", "b"], 2)
    many = [f"s{number}" for number in range(40)]
    assert len(quorum.proposed(Counted(), 1, many).addresses) == quorum.COUNTED_MAX


def test_one_counts_instead_of_another() -> None:
    assert Counted(["a", "b"], 1).replaced("a", "m") == Counted(["m", "b"], 1)
    assert Counted(["a", "b"], 1).replaced("a", "b") == Counted(["b"], 1)
    assert Counted(["a", "b"], 1).replaced("a", "") == Counted(["b"], 1)
    assert Counted(["a", "b"], 1).replaced("x", "m") == Counted(["a", "b"], 1)


def test_the_operations_say_who_counts() -> None:
    made = Node("m", 0)
    made.log_all(ShadowsChanging(["a"], 1), ShadowsChanged(), ShadowsChanging(["a", "b"], 1))
    assert made.state.counted == Counted(["a"], 1)
    assert made.state.counted_next == Change(Counted(["a", "b"], 1), 3)
    made.log_all(TermBegun(0, terms.next_term(0, 1), "a", "m"))
    assert quorum.in_force(made.state) == [Counted(["m"], 1), Counted(["m", "b"], 1)]
    made.log_all(ShadowForgotten("m"), ShadowsChanged(), TermBegun(0, terms.next_term(1, 1)))
    assert quorum.in_force(made.state) == [Counted(["b"], 1)]
    # A restored backup is nobody's yet, and waits for nobody's word.
    made.log_all(ShadowsChanging(["b", "c"], 1))
    made.log_all(TermBegun(0, terms.next_term(2, 1), keeps_unknown=True))
    assert quorum.in_force(made.state) == [Counted()]
    assert quorum.missing_witnesses(made.state, []) == []


class Written(msgspec.Struct, frozen=True):
    """Somebody's mutation."""

    number: int


Row = tuple[int, Any]  # (term, operation)


@dataclass
class Attempt:
    term: int
    before: str
    planned: bool
    #: Who promised, and whether it had promised nobody else.
    bound: dict[str, bool] = field(default_factory=dict)
    is_refused: bool = False


class Node:
    def __init__(self, name: str, wanted: int) -> None:
        self.name = name
        self.wanted = wanted
        self.log: list[Row] = []
        self.state = State()
        self.is_master = False
        self.promises: dict[int, str] = {}
        self.successor = ("", -1)
        self.attempt: Attempt | None = None
        #: Of a master: what its followers have, as far as it heard.
        self.acked: dict[str, int] = {}

    def log_all(self, *operations: Operation | Written) -> None:
        for operation in operations:
            self.state = msgspec.structs.replace(self.state, sequence=len(self.log) + 1)
            if isinstance(operation, Operation):
                apply(SimpleNamespace(state=self.state), operation)  # type: ignore[arg-type]
            self.log.append((self.state.term, operation))

    def take(self, log: list[Row]) -> None:
        """Its own log goes on, or it takes a copy of another."""
        if log[: len(self.log)] != self.log:
            self.log, self.state = [], State()
        self.log_all(*[operation for _, operation in log[len(self.log) :]])

    @property
    def term(self) -> int:
        return self.state.term

    @property
    def position(self) -> tuple[int, int]:
        return self.term, len(self.log)

    @property
    def counted(self) -> list[str]:
        return [name for each in quorum.in_force(self.state) for name in each.addresses]

    @property
    def outstanding(self) -> dict[int, str]:
        return {term: name for term, name in self.promises.items() if term > self.term}


class Model:
    def __init__(self, chance: random.Random, shadows: int, wanted: int, late: int) -> None:
        self.chance = chance
        names = ["m", *[f"s{number}" for number in range(shadows)]]
        self.nodes = {name: Node(name, wanted) for name in names}
        self.nodes["m"].is_master = True
        self.late = names[len(names) - late :]
        #: Acknowledgements on their way: (master, its term, shadow, position).
        self.flying: list[tuple[str, int, str, int]] = []
        #: (what, term in which it was acknowledged); (term, log at its beginning).
        self.reported: dict[int, int] = {}
        self.begun: list[tuple[int, set[int]]] = []
        self.promoted = 0
        self.numbers = 0

    def run(self, steps: int) -> None:
        acts = [
            *[self.write] * 3, *[self.replicate] * 8, *[self.hear] * 6, *[self.see] * 4,
            self.crash, self.join, self.lose, self.ask, *[self.bind] * 4, *[self.begin] * 2,
            self.give_up, *[self.release] * 2, self.hand_over, self.token, self.resign, self.err,
        ]  # fmt: skip
        # Each run has more of some of them, and nothing of others.
        weights = [self.chance.choice([0, 0.3, 1, 1, 3]) for _ in acts]
        for act in self.chance.choices(acts, [weight + 0.01 for weight in weights], k=steps):
            act()

    def elect(self, steps: int) -> None:
        """Masters lose their holds, and those that want to follow them race."""
        acts = [
            self.resign, self.ask, *[self.bind] * 6, *[self.begin] * 3, *[self.write] * 2,
            *[self.replicate] * 3, *[self.hear] * 3, self.release, *[self.give_up] * 2,
        ]  # fmt: skip
        for act in self.chance.choices(acts, k=steps):
            act()

    def warm_up(self) -> None:
        """All shadows follow and count, and have everything."""
        master = self.nodes["m"]
        for _ in range(4):
            for shadow in self.nodes.values():
                if shadow is not master:
                    shadow.take(master.log)
                    master.acked[shadow.name] = len(shadow.log)
            self.see()

    def some(self, is_master: bool) -> Node | None:
        found = [
            node
            for node in self.nodes.values()
            if node.is_master == is_master and node.name not in self.late
        ]
        return self.chance.choice(found) if found else None

    def write(self) -> None:
        master = self.some(True)
        if master is not None:
            self.numbers += 1
            master.log_all(Written(self.numbers))
            self.report(master)

    def replicate(self) -> None:
        """Some rows more, or a copy; the answer is on its way."""
        master, shadow = self.some(True), self.some(False)
        if master is None or shadow is None or (shadow.attempt and shadow.attempt.planned):
            return
        if shadow.term > master.term or max(shadow.outstanding, default=0) > master.term:
            return
        ours, theirs = shadow.log, master.log
        if theirs[: len(ours)] == ours:
            shadow.take(theirs[: len(ours) + self.chance.randint(0, 3)])
        elif shadow.term < master.term:
            shadow.take(theirs)
        else:
            return
        master.acked.setdefault(shadow.name, -1)
        self.flying.append((master.name, master.term, shadow.name, len(shadow.log)))

    def hear(self) -> None:
        if self.flying:
            at = self.chance.randrange(len(self.flying))
            name, term, shadow, position = self.flying.pop(at)
            master = self.nodes[name]
            if master.is_master and master.term == term and shadow in master.acked:
                master.acked[shadow] = max(master.acked[shadow], position)
                self.report(master)

    def see(self) -> None:
        master = self.some(True)
        if master is None:
            return
        if master.state.counted_next is None:
            wished = quorum.proposed(master.state.counted, master.wanted, master.acked)
            if wished != master.state.counted:
                master.log_all(ShadowsChanging(wished.addresses, wished.wanted))
        elif quorum.is_agreed(master.state, master.acked):
            master.log_all(ShadowsChanged())
        self.report(master)

    def report(self, master: Node) -> None:
        if quorum.in_force(master.state)[-1].wanted < master.wanted:
            return
        reported = acknowledged_up_to(master.state, master.acked)
        for at, (_, operation) in enumerate(master.log, 1):
            if isinstance(operation, Written) and at <= reported:
                self.reported.setdefault(operation.number, master.term)
                for term, there in self.begun:
                    assert term <= master.term or operation.number in there, "acknowledged too late"

    def crash(self) -> None:
        node = self.chance.choice(list(self.nodes.values()))
        node.acked.clear()
        node.attempt = None

    def lose(self) -> None:
        """A follower's connection ends."""
        master = self.some(True)
        if master is not None and master.acked:
            del master.acked[self.chance.choice(list(master.acked))]

    def join(self) -> None:
        if self.late and self.chance.random() < 0.2:
            self.late.pop()

    def depose(self, master: Node) -> None:
        master.is_master, master.attempt = False, None
        master.acked.clear()

    def ask(self) -> None:
        shadow = self.some(False)
        if shadow is not None and shadow.attempt is None and shadow.log:
            shadow.attempt = Attempt(self.next_term(shadow), "", False)

    def next_term(self, shadow: Node) -> int:
        # What it heard of, or not, of terms elsewhere.
        known = [shadow.term, *shadow.outstanding]
        known += self.chance.choice([[], [node.term for node in self.nodes.values()]])
        return terms.next_term(max(known), self.chance.getrandbits(32))

    def hand_over(self) -> None:
        """The master ends, and its shadow has all it had."""
        master, shadow = self.some(True), self.some(False)
        if master is None or shadow is None or shadow.attempt or shadow.log != master.log:
            return
        if max(shadow.outstanding, default=0) > master.term:
            return
        term = self.next_term(shadow)
        self.depose(master)
        master.successor = (shadow.name, master.term)
        master.promises[term] = shadow.name
        if self.chance.random() < 0.7:  # else the answer is lost
            shadow.attempt = Attempt(term, master.name, True)

    def resign(self) -> None:
        """An elected master loses its hold: it has all it had as the master of its term."""
        master = self.some(True)
        if master is not None:
            self.depose(master)
            master.successor = (master.name, master.term)

    def err(self) -> None:
        """A shadow that counts takes itself for the ended master of its term."""
        shadow = self.some(False)
        if shadow is not None and shadow.name in shadow.counted:
            shadow.successor = (shadow.name, shadow.term)

    def token(self) -> None:
        """Of two of which one handed over to the other, one is to be the master."""
        for node in self.nodes.values():
            successor, term = node.successor
            if successor == node.name or not successor:
                continue
            if term == node.term and not node.is_master:
                other = self.nodes[successor]
                if self.chance.random() < 0.5:
                    node, other = other, node
                if not node.is_master and node.attempt is None and other.name not in self.late:
                    node.attempt = Attempt(self.next_term(node), other.name, False)
                return

    def bind(self) -> None:
        trying = [node for node in self.nodes.values() if node.attempt]
        if not trying:
            return
        shadow = self.chance.choice(trying)
        attempt = shadow.attempt
        other = self.chance.choice(list(self.nodes.values()))
        if attempt is None or other is shadow or other.name in self.late:
            return
        if other.is_master:
            attempt.is_refused |= not attempt.planned
            if other.term < shadow.term:
                self.depose(other)
            return
        if other.attempt or attempt.term <= max(other.term, *other.outstanding, 0):
            return
        free = set(other.outstanding.values()) <= {shadow.name}
        free |= max(other.outstanding, default=0) <= shadow.term
        other.promises[attempt.term] = shadow.name
        for master in self.nodes.values():
            master.acked.pop(other.name, None)
        attempt.bound[other.name] = free
        if other.position > shadow.position:
            attempt.is_refused = True

    def begin(self) -> None:
        trying = [node for node in self.nodes.values() if node.attempt]
        if not trying:
            return
        shadow = self.chance.choice(trying)
        attempt = shadow.attempt
        if attempt is None or attempt.is_refused:
            return
        if attempt.term <= max(shadow.term, *shadow.outstanding, 0):
            return
        if self.is_handed_over(shadow, attempt):
            free = {name for name, is_free in attempt.bound.items() if is_free}
            if set(shadow.outstanding.values()) <= {shadow.name}:
                free.add(shadow.name)
            refused: Any = quorum.missing_witnesses(shadow.state, free)
        else:
            attempt.before = ""
            refused = quorum.missing(shadow.state, {*attempt.bound, shadow.name}) != []
        if refused:
            return
        before = attempt.before
        if shadow.successor[0] and shadow.successor[0] == before:
            before = ""
        shadow.log_all(TermBegun(0, attempt.term, shadow.name, before))
        shadow.is_master, shadow.attempt, shadow.promises = True, None, {}
        shadow.acked.clear()
        self.promoted += 1
        there = {op.number for _, op in shadow.log if isinstance(op, Written)}
        lost = {n for n, term in self.reported.items() if term < attempt.term} - there
        assert not lost, f"{shadow.name} begins without {lost}"
        self.begun.append((attempt.term, there))

    def is_handed_over(self, shadow: Node, attempt: Attempt) -> bool:
        if shadow.successor == (shadow.name, shadow.term):
            return shadow.name not in shadow.counted
        if not attempt.before:
            return False
        if attempt.planned:
            return True
        other = self.nodes[attempt.before]
        if other.name not in attempt.bound:
            return False
        if shadow.successor == (other.name, shadow.term):
            return True
        return other.successor == (shadow.name, other.term) and other.log == shadow.log

    def give_up(self) -> None:
        node = self.chance.choice(list(self.nodes.values()))
        if node.attempt is not None and self.chance.random() < 0.3:
            node.attempt = None

    def release(self) -> None:
        node = self.chance.choice(list(self.nodes.values()))
        for term, name in list(node.outstanding.items()):
            other = self.nodes[name]
            if other.term < term and (other.attempt is None or other.attempt.term != term):
                del node.promises[term]


@pytest.mark.parametrize(("shadows", "wanted"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 2)])
def test_no_term_begins_without_what_was_acknowledged(shadows: int, wanted: int) -> None:
    promoted = reported = 0
    for seed in range(150):
        model = Model(random.Random(f"{seed}/{shadows}/{wanted}"), shadows, wanted, seed % 3)
        try:
            model.run(600)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        promoted += model.promoted
        reported += len(model.reported)
    assert promoted > 50, "promotions are what this is about"
    assert reported > 50


@pytest.mark.parametrize(("shadows", "wanted"), [(3, 1), (4, 2)])
def test_no_master_goes_on_without_what_others_acknowledged(shadows: int, wanted: int) -> None:
    """Shorter, from a state in which all count: several try to become the master at once."""
    for seed in range(1000):
        model = Model(random.Random(f"{seed}/{shadows}/{wanted}"), shadows, wanted, 0)
        model.warm_up()
        try:
            model.elect(200)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
