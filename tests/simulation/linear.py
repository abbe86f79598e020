"""Is there an order of these calls that explains what every caller saw?

Wing and Gong's search with Lowe's memory: a call may come next if it began before
every other call that has not come yet had ended. A state that was met before, of
the calls that have come and the tree they left, leads nowhere new. A call whose
outcome nobody knows may come at any time after it began, or never.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .names_model import EMPTY, OK, UNKNOWN, Call, Step, Tree, step

#: States looked at before the search gives up.
STATES_MAX = 400_000


@dataclass
class Event:
    """A call and what became of it. ``ended`` is infinite while nobody knows."""

    who: str
    call: Call
    began: float
    ended: float = math.inf
    outcome: str = UNKNOWN
    seen: object = None

    def __str__(self) -> str:
        ended = "          ..." if self.ended == math.inf else f"{self.ended:13.6f}"
        seen = "" if self.seen is None else f" {self.seen}"
        return f"{self.began:13.6f} {ended} {self.who:<10} {self.call} -> {self.outcome}{seen}"


class Undecided(Exception):
    """The search took too long."""


def find_order(
    history: Sequence[Event], start: Tree = EMPTY, model: Step = step
) -> list[Event] | None:
    """An order that explains ``history``, or None. Raises Undecided."""
    return _Search(history, model).run(start)


class _Search:
    def __init__(self, history: Sequence[Event], model: Step) -> None:
        self.events = sorted(history, key=lambda event: event.began)
        self.model = model
        #: Bits of the calls that must come.
        self.needed = sum(1 << n for n, event in enumerate(self.events) if event.outcome != UNKNOWN)
        self.looked = 0
        self.steps: dict[tuple[Tree, int], Tree | None] = {}

    def run(self, start: Tree) -> list[Event] | None:
        seen: set[tuple[int, Tree]] = set()
        order: list[int] = []
        stack = [(0, start, self._choices(0, start))]
        while stack:
            done, _tree, choices = stack[-1]
            if done & self.needed == self.needed:
                return [self.events[n] for n in order]
            found = next(choices, None)
            if found is None:
                stack.pop()
                if order:
                    order.pop()
                continue
            number, after = found
            state = (done | 1 << number, after)
            if state in seen:
                continue
            seen.add(state)
            self.looked += 1
            if self.looked > STATES_MAX:
                raise Undecided(f"{self.looked} states of {len(self.events)} calls")
            order.append(number)
            stack.append((*state, self._choices(*state)))
        return None

    def _choices(self, done: int, tree: Tree) -> Iterator[tuple[int, Tree]]:
        """Calls that may come next, those nobody knows of last, and what they leave."""
        first_end = math.inf
        open_: list[int] = []
        for number, event in enumerate(self.events):
            if event.began > first_end:
                break
            if done >> number & 1:
                continue
            open_.append(number)
            first_end = min(first_end, event.ended)
        ready = [n for n in open_ if self.events[n].began <= first_end]
        ready.sort(key=lambda n: (self.events[n].outcome == UNKNOWN, self.events[n].ended))
        choices = []
        for number in ready:
            after = self._after(tree, number)
            if after is None:
                continue
            event = self.events[number]
            if event.call.pure or event.outcome not in (OK, UNKNOWN):
                # It changes nothing, wherever it comes, and is right here: to put it off
                # helps nobody. (A mkdir that finds the directory might make it later.)
                return iter([(number, after)])
            choices.append((number, after))
        return iter(choices)

    def _after(self, tree: Tree, number: int) -> Tree | None:
        """The tree after call ``number``, or None if it cannot have come here."""
        key = (tree, number)
        if key in self.steps:
            return self.steps[key]
        event = self.events[number]
        outcome, expected, after = self.model(tree, event.call)
        result: Tree | None = after
        if event.outcome == UNKNOWN:
            # One that changes nothing might as well never come.
            result = None if after == tree else after
        elif outcome != event.outcome or (
            outcome == OK and not event.call.agrees(event.seen, expected)
        ):
            result = None
        self.steps[key] = result
        return result


def explain(history: Sequence[Event]) -> str:
    """The shortest beginning of a history that has no order, as text."""
    told = sorted((e for e in history if e.outcome != UNKNOWN), key=lambda e: e.ended)
    low, high = 0, len(told)
    while low < high:
        middle = (low + high) // 2
        if _has_order(_until(history, told[middle].ended)):
            low = middle + 1
        else:
            high = middle
    if low == len(told):
        return "no order of these calls explains what was seen"
    shown = sorted(_until(history, told[low].ended), key=lambda event: event.began)
    return "\n".join(
        ["no order of calls explains what was seen up to this one:", f"  {told[low]}", "of"]
        + [f"  {event}" for event in shown]
    )


def _until(history: Sequence[Event], now: float) -> list[Event]:
    """The history as it was known at ``now``."""
    return [
        event if event.ended <= now else replace(event, ended=math.inf, outcome=UNKNOWN, seen=None)
        for event in history
        if event.began <= now
    ]


def _has_order(history: Sequence[Event]) -> bool:
    try:
        return find_order(history) is not None
    except Undecided:
        return True
