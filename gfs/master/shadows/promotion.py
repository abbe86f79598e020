"""Promoting a shadow master: the checks, and their order.

*Planned*: the shadow master follows a live master. The master ends first: it refuses
new mutations, waits until the shadow master has everything that it ever acknowledged,
records that it is a shadow master now and who its successor is, and answers. Nothing is
lost.

*After a death*: the master does not answer. This shadow master may lack operations that
it acknowledged. It certainly has them all if the master waits for n shadow masters
before it acknowledges (``replicas_before_ack``), fewer than n of those that count do
not answer, and this one's log is at least as long as those of the others: see
:mod:`gfs.master.shadows.quorum`. Otherwise the operator must force the promotion,
and the refusal says what may be lost.

In both cases the others are first asked to promise that they follow no master of a
lower term any more (:mod:`gfs.master.shadows.promises`). After a death these
promises prevent a master that only seems to be dead from acknowledging more through one
of them. In the planned case this shadow master has everything, and must only exclude
that another one was promoted without it: so many have to promise that any two
promotions have a common witness, and none of them may have promised to another shadow
master before.

Most reasons for a refusal can be found without changing anything, so that is done
first. Promises to a shadow master that is not promoted after all end within a second.

Then the term begins, in one commit, and is announced (:mod:`.term_announcer`).

*Elected*: this process has the hold (:mod:`gfs.master.election`), so the master before it has
none, although it may be connected still: a process that is stopped looks like that. It is as after
a death, never with force, and the others leave that master. Only those that count are waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from gfs.diagnostics import event
from gfs.errors import Busy, GfsError, StaleVersion
from gfs.io import World
from gfs.master.metadata import operation_log, terms
from gfs.master.shadows import quorum
from gfs.master.shadows.log_receiver import Following
from gfs.master.shadows.promises import Promises, ask
from gfs.master.shadows.read_only_master import ShadowMaster
from gfs.protocol import handshake
from gfs.protocol.messages import Bind, Position, PositionReply, Promote, PromoteReply

log = logging.getLogger(__name__)

#: How long a shadow master whose connection to its master just broke tries to connect again.
RECONNECT_SECONDS = 1.5

Answers = dict[str, PositionReply]


def _never(answers: Answers) -> bool:
    return False


class Promotion:
    """``begin`` starts the term, durably, once no master is followed any more; its
    argument is the master before it, if that is a shadow master now. ``check`` raises the
    reason for which an operator's choice cannot be carried out now."""

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
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._world = world
        self._shadow = shadow
        self._following = following
        self._promises = promises
        self._identity = identity
        self._address = address
        self._others = others
        self._begin = begin
        self._may_begin = check
        self._running = False
        #: Whether the promotion that is running, or is done, is no operator's.
        self.elected = False
        #: The term that may be about to begin.
        self._beginning = 0
        #: Why others did not answer.
        self._reasons: dict[str, str] = {}
        self.done = trio.Event()

    # --- asked by others -------------------------------------------------------------------

    def position(self) -> PositionReply:
        reply = self._following.position()
        reply.beginning = self._beginning
        return reply

    async def bind(self, request: Bind) -> PositionReply:
        """Carry out Bind. Raises Busy, StaleVersion or DiskFull."""
        if self._running or self.done.is_set():
            raise Busy("it is being promoted itself")
        return await self._following.bind(request)

    # --- asked by an operator --------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self._running

    async def promote(self, request: Promote, *, elected: bool = False) -> PromoteReply:
        """Raises StaleVersion if something may be lost, Busy if it runs already."""
        if self._running:
            raise Busy("this shadow master is being promoted already")
        self._running, self.elected = True, elected
        try:
            # The operator may disconnect.
            with trio.CancelScope(shield=True):
                reply = await self._promote(request.force, elected)
        finally:
            # Only when it is known whether the term has begun.
            self._beginning = 0
            self._running = False
        return reply

    async def _promote(self, force: bool, elected: bool) -> PromoteReply:
        self._reasons.clear()
        if not elected:
            if self._may_begin is not None:
                await self._may_begin()
            await self._wait_for_master()
        if self._following.rpc is not None and not elected:
            term, before, message = await self._planned(force)
        else:
            term, before, message = await self._after_a_death(force, elected)
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
        """Choose the term, which may be about to begin from now on."""
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
                    "--force continues without it"
                ) from error
            master, message = "", f"the master before it could not hand over ({error})"
        request = Bind(0, term, self._address, leave=True)
        self._check_witnesses(await self._ask(self._counted(), request, self._has_witnesses), force)
        return term, master, message

    def _check_witnesses(self, answers: Answers, force: bool) -> None:
        missing = self._missing_witnesses(answers)
        if missing and not force:
            raise StaleVersion(
                f"another shadow master may have been promoted without this one: "
                f"{self._named(missing)} must answer that it was not. --force continues without it"
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
            # What was promised for a term below this one's own binds nobody to another any more:
            # this one's was begun with everything of that term.
            and (reply.promised <= term or set(reply.promised_to) <= {self._address})
        }
        if all(promise.address == self._address for promise in self._promises.outstanding):
            free.add(self._address)
        return quorum.missing_witnesses(self._shadow.tables.store.state, free)

    # --- it does not -------------------------------------------------------------------------

    async def _after_a_death(self, force: bool, elected: bool = False) -> tuple[int, str, str]:
        is_enough = self._suffice if elected else _never
        everyone = [*self._counted(), *self._others()]
        answers = await self._ask(everyone, Position(id=0), is_enough)
        self._check(answers, force, elected)
        term = self._choose_term(answers)
        request = Bind(0, term, self._address, leave=force or elected)
        shadows = [address for address, reply in answers.items() if reply.role == "shadow"]
        bound = await self._ask(shadows, request, is_enough)
        masters = {address: r for address, r in answers.items() if r.role == "master"}
        before, doubts = self._check({**masters, **bound}, force, elected)
        message = "it has everything that was acknowledged"
        if before:
            message = "the master before it has ended, and follows this one now; nothing is lost"
            if before == self._address:
                before, message = "", "it was also the master before; nothing is lost"
        return term, before, doubts or message

    def _suffice(self, answers: Answers) -> bool:
        """Whether nobody else has to be asked, as far as these go."""
        asked = {address for address, reply in answers.items() if reply.role == "shadow"}
        state = self._shadow.tables.store.state
        if quorum.missing(state, asked | {self._address}) == []:
            return True
        return bool(self._handed_over(answers)) and self._has_witnesses(answers)

    def _check(self, answers: Answers, force: bool, elected: bool) -> tuple[str, str]:
        """The master that handed over to this one (or this one, if it handed over to
        another), and what may be lost. Raises StaleVersion if something may be, without
        ``force``."""
        answers = {address: r for address, r in answers.items() if r.role != "copying"}
        state = self._shadow.tables.store.state
        before = self._handed_over(answers)
        doubts = [
            f"{address} has {reply.sequence - state.sequence} more operations: promote that one"
            if reply.term == state.term
            else f"{address} is of a newer term: promote that one"
            for address, reply in answers.items()
            if (reply.term, reply.sequence) > (state.term, state.sequence)
            # What only a former master has, was not acknowledged.
            and (not elected or reply.term > state.term or address in self._counted())
        ]
        doubts += [
            f"{address} follows the master at {reply.follows}, which is alive: promote that one"
            for address, reply in answers.items()
            if reply.follows and not elected
        ]
        doubts += [
            f"the master at {address} answers, and is not followed yet: try again"
            for address, reply in answers.items()
            if reply.role == "master"
        ]
        if before:
            if missing := self._missing_witnesses(answers):
                doubts.append(
                    "another shadow master may have been promoted without this one: "
                    f"{self._named(missing)} must answer that it was not"
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
        """The master that handed over to this one, or to nobody, with exactly the operations
        that are here; empty if there is none. It can be this one itself, if its successor
        has not been promoted."""
        store = self._shadow.tables.store
        with store.snapshot() as txn:
            state, chain = txn.state, operation_log.chain(txn)
        standing = store.standing
        # One that counts as a shadow master was not the master of this term, whatever it says.
        counted = self._counted()
        if standing.successor and standing.ended == state.term and self._address not in counted:
            if standing.successor == self._address:
                return self._address
            successor = answers.get(standing.successor)
            return self._address if successor is not None and successor.role == "shadow" else ""
        for address, reply in answers.items():
            level = (reply.term, reply.sequence, reply.chain) == (state.term, state.sequence, chain)
            if reply.successor in (self._address, address) and level and address not in counted:
                return address
        return ""

    def _unknown(self, silent: list[str]) -> str:
        heard_at, now = self._following.heard_at, self._world.clock.monotonic()
        heard = "has not been connected" if heard_at is None else (
            f"last sent a message {now - heard_at:.1f} s ago"
        )  # fmt: skip
        others = f": {self._named(silent)} may have it, but does not answer" if silent else ""
        missing = self._shadow.behind_operations
        known = f", {missing} of which are known to be missing" if missing else ""
        sequence = self._shadow.tables.store.state.sequence
        return (
            f"this shadow master has the operations up to {sequence}; the master "
            f"does not answer and {heard}: what it acknowledged since may be lost{known}{others}"
        )

    # --- asking ------------------------------------------------------------------------------

    def _counted(self) -> list[str]:
        in_force = quorum.in_force(self._shadow.tables.store.state)
        return [address for each in in_force for address in each.addresses]

    def _named(self, addresses: Iterable[str]) -> str:
        """Their addresses, with the reasons why they did not answer."""
        return ", ".join(
            f"{each} ({self._reasons[each]})" if each in self._reasons else each
            for each in addresses
        )

    async def _ask(
        self,
        addresses: list[str],
        request: Position | Bind,
        is_enough: Callable[[Answers], bool] = _never,
    ) -> Answers:
        """Send to all of them at once; returns those whose answers came until they were enough."""
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
