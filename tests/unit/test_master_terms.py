"""Terms: each has numbers of its own, and a higher one wins."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfs.errors import StaleVersion
from gfs.io import real_world
from gfs.master.metadata import terms
from gfs.master.metadata.store import open_store
from gfs.master.shadows.promises import Promises
from gfs.protocol.messages import Bind

CHANCE = st.integers(0, 2**32 - 1)


@given(st.lists(CHANCE, min_size=1, max_size=50))
def test_terms_grow_and_so_do_their_numbers(chances: list[int]) -> None:
    known = 0
    for number, chance in enumerate(chances, 1):
        term = terms.next_term(known, chance)
        assert term > known
        assert terms.count(term) == number
        # Whatever a term has handed out out of its part lies below the next one's.
        assert terms.first_number(term) > terms.first_number(known) + 2**32 - 1
        assert terms.first_version(term) > terms.first_version(known)
        known = term


@given(st.integers(0, 2**14), CHANCE, CHANCE)
def test_two_shadows_promoted_at_once(count: int, one: int, other: int) -> None:
    known = count << 32
    first, second = terms.next_term(known, one), terms.next_term(known, other)
    assert (first == second) == (one == other)
    if one & 0xFFFF != other & 0xFFFF:
        assert abs(terms.first_number(first) - terms.first_number(second)) >= 2**32


@given(st.integers(0, 2**40), CHANCE)
def test_numbers_stay_in_their_fields(count: int, chance: int) -> None:
    term = terms.next_term(count << 32, chance)
    assert terms.first_number(term) < 2**63
    assert terms.first_version(term) < 2**32


async def test_a_term_is_promised_to_one(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "metadata"), 1 << 28, False, "feed", 7)
    promises = Promises(real_world(), store, mock.Mock())
    first = terms.next_term(store.state.term, 1)
    second = terms.next_term(first, 1)
    assert (await promises.make(Bind(0, first, "a:1", True))).promised == 0
    for term in (first, store.state.term):
        with pytest.raises(StaleVersion, match="knows of a term"):
            await promises.make(Bind(0, term, "b:1", True))
    assert (await promises.make(Bind(0, second, "b:1", True))).promised_to == ["a:1"]
    assert [(each.term, each.address) for each in promises.outstanding] == [
        (first, "a:1"), (second, "b:1")
    ]  # fmt: skip
    store.close()
