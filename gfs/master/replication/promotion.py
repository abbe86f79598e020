"""Promoting a shadow: what is asked before, and in which order.

*Planned*: the shadow follows a master that lives. The master ends first: it takes
nothing more, waits until the shadow has all it ever acknowledged, writes down
that it is a shadow now and whose turn it is, and says so. Nothing is lost.

*After a death*: the master does not answer. What it acknowledged may not be here.
It is for sure, if it waits for n shadows before it acknowledges
(``replicas_before_ack``), fewer than n of those that count cannot be asked, and this
one has no less than those that can: see :mod:`gfs.master.replication.quorum`. Otherwise it takes
the operator's word, and the refusal says what may be lost.

In both cases the others are asked for a promise before this is decided: to follow no
master of a lower term any more (:mod:`gfs.master.replication.promises`). After a death it is that
which keeps a master that only seems to be dead from acknowledging more through one of
them. In the planned case the shadow knows what there is, and only has to keep out others
that were promoted without it: as many have to promise as there are witnesses of every
promotion, and none of them may have promised another shadow before.

What refuses a promotion is mostly known by looking, so that is done first, and changes
nothing. Promises to a shadow that is not promoted after all are given up within a second.

Then the term begins, in one commit, and is announced (:mod:`.term_announcer`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from gfs.diagnostics import event
from gfs.errors import Busy, GfsError, StaleVersion
from gfs.io import World
from gfs.master.metadata import operation_log, terms
from gfs.master.replication import quorum
from gfs.master.replication.log_receiver import Following
from gfs.master.replication.promises import Promises, ask
from gfs.master.replication.read_only_master import ShadowMaster
from gfs.protocol import handshake
from gfs.protocol.messages import Bind, Position, PositionReply, Promote, PromoteReply

log = logging.getLogger(__name__)

#: A shadow whose connection to its master just broke tries for so long.
RECONNECT_SECONDS = 1.5

Answers = dict[str, PositionReply]


class Promotion:
    """``begin`` starts the term, durably, once no master is followed any more; it gets
    the master before it, if that is a shadow now."""

    def __init__(
        self,
        world: World,
        shadow: ShadowMaster,
        following: Following,
        promises: Promises,
        identity: handshake.Identity,
        address: str,
        others: Callable[[], list[str]],
        begin: Callable[[int, str], Awaitable[None]],
    ) -> None:
        self._world = world
        self._shadow = shadow
        self._following = following
        self._promises = promises
        self._identity = identity
        self._address = address
        self._others = others
        self._begin = begin
        self._running = False
        #: The term that may be about to begin.
        self._beginning = 0
        #: Why others could not be asked.
        self._reasons: dict[str, str] = {}
        self.done = trio.Event()

    # --- asked by others -------------------------------------------------------------------

    def position(self) -> PositionReply:
        reply = self._following.position()
        reply.beginning = self._beginning
        return reply

    async def bind(self, request: Bind) -> PositionReply:
        """As the message says. Raises Busy, StaleVersion or DiskFull."""
        if self._running or self.done.is_set():
            raise Busy("it is being promoted itself")
        return await self._following.bind(request)

    # --- asked by an operator --------------------------------------------------------------

    async def promote(self, request: Promote) -> PromoteReply:
        """Raises StaleVersion if something may be lost, Busy if it runs already."""
        if self._running:
            raise Busy("this shadow master is being promoted already")
        self._running = True
        try:
            # Whoever asked may hang up.
            with trio.CancelScope(shield=True):
                reply = await self._promote(request.force)
        finally:
            # Not before it is known that the term does not begin any more, or did.
            self._beginning = 0
            self._running = False
        return reply

    async def _promote(self, force: bool) -> PromoteReply:
        self._reasons.clear()
        await self._wait_for_master()
        if self._following.rpc is not None:
            term, before, message = await self._planned(force)
        else:
            term, before, message = await self._after_a_death(force)
        await self._begin(term, before)
        sequence = self._shadow.tables.store.state.sequence
        log.warning(
            "promoted: term %d begins with operation %d",
            terms.count(term),
            sequence,
            extra=event("promoted", term=terms.count(term), operation=sequence),
        )
        self.done.set()
        return PromoteReply(0, term, sequence, message)

    async def _wait_for_master(self) -> None:
        with trio.move_on_after(RECONNECT_SECONDS):
            while self._following.rpc is None:
                await self._world.clock.sleep(0.05)

    def _choose_term(self, answers: Answers) -> int:
        """From now on it may be about to begin."""
        known = [self._shadow.tables.store.state.term, self._identity.term, self._promises.highest]
        known += [max(reply.term, reply.promised) for reply in answers.values()]
        self._beginning = terms.next_term(max(known), self._world.random.getrandbits(32))
        return self._beginning

    # --- the master lives --------------------------------------------------------------------

    async def _planned(self, force: bool) -> tuple[int, str, str]:
        master = self._shadow.master_address
        answers = await self._ask(self._counted(), Position(id=0), self._has_witnesses)
        self._check_witnesses(answers, force)
        term = self._choose_term(answers)
        message = "the master before it has ended, and follows this one now; nothing is lost"
        try:
            await self._following.hand_over(term)
        except (ConnectionError, GfsError) as error:
            if not force:
                raise StaleVersion(
                    f"the master could not hand over: {error}. See gfs status of both; "
                    "--force goes on without it"
                ) from error
            master, message = "", f"the master before it could not hand over ({error})"
        request = Bind(0, term, self._address, leave=True)
        self._check_witnesses(await self._ask(self._counted(), request, self._has_witnesses), force)
        return term, master, message

    def _check_witnesses(self, answers: Answers, force: bool) -> None:
        missing = self._missing_witnesses(answers)
        if missing and not force:
            raise StaleVersion(
                f"another shadow may have been promoted without this one: "
                f"{self._named(missing)} must say that it was not. --force goes on without it"
            )

    def _has_witnesses(self, answers: Answers) -> bool:
        return not self._missing_witnesses(answers)

    def _missing_witnesses(self, answers: Answers) -> list[str]:
        term = self._shadow.tables.store.state.term
        free = {
            address
            for address, reply in answers.items()
            if reply.role == "shadow"
            and reply.term <= term
            and set(reply.promised_to) <= {self._address}
        }
        if all(promise.address == self._address for promise in self._promises.outstanding):
            free.add(self._address)
        return quorum.missing_witnesses(self._shadow.tables.store.state, free)

    # --- it does not -------------------------------------------------------------------------

    async def _after_a_death(self, force: bool) -> tuple[int, str, str]:
        answers = await self._ask([*self._counted(), *self._others()], Position(id=0))
        self._check(answers, force)
        term = self._choose_term(answers)
        request = Bind(0, term, self._address, leave=force)
        shadows = [address for address, reply in answers.items() if reply.role == "shadow"]
        bound = await self._ask(shadows, request)
        masters = {address: r for address, r in answers.items() if r.role == "master"}
        before, doubts = self._check({**masters, **bound}, force)
        message = "all that was acknowledged is here"
        if before:
            message = "the master before it has ended, and follows this one now; nothing is lost"
            if before == self._address:
                before, message = "", "it was the master before as well; nothing is lost"
        return term, before, doubts or message

    def _check(self, answers: Answers, force: bool) -> tuple[str, str]:
        """Which master handed over to this one (or to another, and is this one), and what
        may be lost. Raises StaleVersion if something may be, without ``force``."""
        answers = {address: r for address, r in answers.items() if r.role != "copying"}
        state = self._shadow.tables.store.state
        before = self._handed_over(answers)
        doubts = [
            f"{address} has {reply.sequence - state.sequence} operations more: promote that one"
            if reply.term == state.term
            else f"{address} is of a newer term: promote that one"
            for address, reply in answers.items()
            if (reply.term, reply.sequence) > (state.term, state.sequence)
        ]
        doubts += [
            f"{address} follows the master at {reply.follows}, which lives: promote that one"
            for address, reply in answers.items()
            if reply.follows
        ]
        doubts += [
            f"the master at {address} answers, and is not followed yet: try again"
            for address, reply in answers.items()
            if reply.role == "master"
        ]
        if before:
            if missing := self._missing_witnesses(answers):
                doubts.append(
                    "another shadow may have been promoted without this one: "
                    f"{self._named(missing)} must say that it was not"
                )
        else:
            asked = {a for a, reply in answers.items() if reply.role == "shadow"}
            silent = quorum.missing(state, asked | {self._address})
            if silent is None or silent:
                doubts.append(self._unknown(silent or []))
        if doubts and not force:
            raise StaleVersion("; ".join(doubts) + ". --force promotes it without them")
        return before, "; ".join(doubts)

    def _handed_over(self, answers: Answers) -> str:
        """The master that ended with what is here, to be followed by this one; empty if
        that is not known. It can be this one: then the heir must have made nothing of it."""
        store = self._shadow.tables.store
        with store.snapshot() as txn:
            state, chain = txn.state, operation_log.chain(txn)
        standing = store.standing
        if standing.heir and standing.ended == state.term:
            heir = answers.get(standing.heir)
            return self._address if heir is not None and heir.role == "shadow" else ""
        for address, reply in answers.items():
            level = (reply.term, reply.sequence, reply.chain) == (state.term, state.sequence, chain)
            if reply.heir == self._address and level:
                return address
        return ""

    def _unknown(self, silent: list[str]) -> str:
        heard_at, now = self._following.heard_at, self._world.clock.monotonic()
        heard = "was not heard from" if heard_at is None else (
            f"was last heard from {now - heard_at:.1f} s ago"
        )  # fmt: skip
        others = f": {self._named(silent)} may have it, and cannot be asked" if silent else ""
        missing = self._shadow.behind_operations
        known = f", {missing} of which are known to be missing" if missing else ""
        sequence = self._shadow.tables.store.state.sequence
        return (
            f"this shadow has the operations up to {sequence}; the master "
            f"does not answer and {heard}: what it acknowledged since may be lost{known}{others}"
        )

    # --- asking ------------------------------------------------------------------------------

    def _counted(self) -> list[str]:
        in_force = quorum.in_force(self._shadow.tables.store.state)
        return [address for each in in_force for address in each.addresses]

    def _named(self, addresses: Iterable[str]) -> str:
        """With what kept them from answering."""
        return ", ".join(
            f"{each} ({self._reasons[each]})" if each in self._reasons else each
            for each in addresses
        )

    async def _ask(
        self,
        addresses: list[str],
        request: Position | Bind,
        is_enough: Callable[[Answers], bool] = lambda answers: False,
    ) -> Answers:
        """All of them at once; those whose answers came until it was enough."""
        answers: Answers = {}
        if is_enough(answers):
            return answers
        async with trio.open_nursery() as nursery:

            async def ask_one(address: str) -> None:
                try:
                    answers[address] = await ask(self._world, address, self._identity, request)
                except (ConnectionError, GfsError) as error:
                    log.info("%s does not answer: %s", address, error)
                    self._reasons[address] = str(error)
                    return
                self._reasons.pop(address, None)
                if is_enough(answers):
                    nursery.cancel_scope.cancel()

            for address in dict.fromkeys(addresses):
                if address != self._address:
                    nursery.start_soon(ask_one, address)
        return answers
