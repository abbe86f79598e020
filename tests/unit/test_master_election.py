"""Which possibly stale replica is elected, and which servers are waited for before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gfs.master.metadata.rows import DRAINED, NOT_DRAINING
from gfs.master.rules.election import awaited, best
from gfs.master.tables.servers import DEAD, LIVE, SILENT, Server
from gfs.protocol.messages import VerifyReply

STATES = ("good", "stale", "missing", "corrupt", "forgetful")


def server(index: int, state: str = LIVE, heard: float = 0.0) -> Server:
    found = Server(index, f"s{index}", f"s{index}:1", "rack", heard, state)
    found.registration.is_complete = state == LIVE
    return found


REPLIES = st.lists(
    st.tuples(st.sampled_from(STATES), st.integers(1, 4), st.integers(0, 4)), max_size=5
)


@given(replies=REPLIES)
def test_the_best_is_whole_newest_and_longest(replies: list[tuple[str, int, int]]) -> None:
    found = [
        (server(n), VerifyReply(0, state, version, length, []))
        for n, (state, version, length) in enumerate(replies)
    ]
    chosen = best(found)
    whole = [(version, length) for state, version, length in replies if state == "forgetful"]
    if chosen is None:
        assert not whole
        return
    state, version, length = replies[chosen.index]
    assert state == "forgetful"
    assert (version, length) == max(whole)
    assert best(found[::-1]) is chosen, "whoever answers first"


@given(
    state=st.sampled_from([LIVE, SILENT, DEAD]),
    registered=st.booleans(),
    draining=st.sampled_from([NOT_DRAINING, DRAINED]),
    away=st.integers(0, 20),
)
def test_who_is_away_is_waited_for(state: str, registered: bool, draining: int, away: int) -> None:
    one = server(1, state, 100.0 - away)
    one.registration.is_complete, one.draining = registered, draining
    is_here = state == LIVE and registered
    wanted = not is_here and draining != DRAINED and away < 10
    assert awaited([server(0), one], 100.0, 10.0) == wanted
    assert not awaited([server(0)], 100.0, 10.0)
