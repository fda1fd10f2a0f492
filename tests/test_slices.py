"""covers: `Slice`, the arithmetic of a listing by start date, which leaves nothing out however many readers split it.

Markets are pairs of start and id, as a slice takes them; the tests read them in the order of a random number generator.
"""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_collector import MAX_DENSITY, NEVER, PAGE_SIZE, Slice

Market = tuple[int, int]  # start and id

# starts that grow denser, and bursts of many markets in one second
EXCHANGES = st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 250)), min_size=1, max_size=40)


def exchange(parts: list[tuple[int, int]]) -> list[Market]:
    """Return markets in the order of their start: after each pause so many in one second or spread over the pause."""
    starts, now = [], 1_000_000_000
    for pause, count in parts:
        step = pause // count if pause % 2 else 0
        starts += [now + number * step for number in range(count)]
        now += pause
    return [(start, number) for number, start in enumerate(sorted(starts))]


def topmost(markets: list[Market]) -> Slice:
    """Return the slice that the first page of the descending listing has whole."""
    top = Slice(NEVER)
    top.cover(markets[: -PAGE_SIZE - 1 : -1])
    return top


def read_page(part: Slice, markets: list[Market], places: dict[Slice, int]) -> set[int]:
    """Let *part* go on by a page, and return the ids of it."""
    place = places.setdefault(part, bisect_left(markets, (part.read_to, 0)))
    page = markets[place : place + PAGE_SIZE]
    places[part] = place + PAGE_SIZE
    assert part.add(page, is_last=place + PAGE_SIZE > len(markets)) is None
    return {id_ for _, id_ in page}


@given(EXCHANGES, st.randoms(use_true_random=False), st.floats(0, 1))
def test_readers_that_split_as_they_like_leave_nothing_out(
    parts: list[tuple[int, int]], chance: random.Random, share: float
) -> None:
    markets = exchange(parts)
    slices, places, seen = [Slice(0, topmost(markets))], dict[Slice, int](), set[int]()
    while unread := [part for part in slices if not part.is_read]:
        if upper := chance.choice(unread).split() if chance.random() < share else None:
            slices.append(upper)
        seen |= read_page(chance.choice(unread), markets, places)
    assert all(part.is_proven for part in slices)
    assert seen | {id_ for _, id_ in markets[-PAGE_SIZE:]} == {id_ for _, id_ in markets}


@given(EXCHANGES, st.randoms(use_true_random=False), st.integers(1, 60))
def test_what_is_unread_when_a_run_ends_is_all_that_the_next_one_needs(
    parts: list[tuple[int, int]], chance: random.Random, pages: int
) -> None:
    markets = exchange(parts)
    slices, places, seen = [Slice(0, topmost(markets))], dict[Slice, int](), set[int]()
    for _ in range(pages):
        if not (unread := [part for part in slices if not part.is_read]):
            break
        seen |= read_page(chance.choice(unread), markets, places)
        if upper := chance.choice(unread).split():
            slices.append(upper)
    rest = sorted(part.unread for part in slices if not part.is_proven)
    assert all(low <= high for low, high in rest)
    for start, id_ in markets:
        on_top = id_ > len(markets) - PAGE_SIZE - 1
        assert id_ in seen or on_top or any(low <= start < high for low, high in rest)


@given(st.integers(1, 10**6), st.integers(10**6, 10**8), st.floats(1e-6, MAX_DENSITY), st.floats(1e-6, MAX_DENSITY))
def test_a_split_halves_the_markets_by_the_densities_at_both_ends(
    start: int, length: int, density: float, density_above: float
) -> None:
    part = Slice(start, Slice(start + length, None, density_above, density_above), density, density)
    before = part.left
    assert before == pytest.approx(length * density, rel=1e-6) or density != density_above
    upper = part.split()
    if before < 2 * PAGE_SIZE:
        assert upper is None
    elif upper:
        assert part.end == upper.start
        assert start < upper.start < upper.end == start + length
        growth = (density_above / density) ** (1 / length)
        below = sum(density * growth ** (x * (upper.start - start) / 1_000) for x in range(1_000))
        assert below * (upper.start - start) / 1_000 == pytest.approx(before / 2, rel=0.02, abs=2)


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ([(50, 1), (200, 2)], "markets that start from 100 on were asked for, and one that starts at 50 came"),
        ([(200, 1), (150, 2)], "the listing is not in the order of startDate"),
    ],
)
def test_a_page_that_was_not_asked_for_is_refused(page: list[Market], why: str) -> None:
    assert Slice(100, Slice(300)).add(page, is_last=False) == why


def test_a_slice_is_proven_by_a_market_that_the_slice_above_lists_too() -> None:
    above = Slice(300, Slice(NEVER))
    part = Slice(100, above)
    assert part.add([(100, 1), (299, 2), (310, 3)], is_last=False) is None
    assert (part.is_read, part.is_proven, part.unread) == (True, None, (100, 300)), "nobody has asked above yet"
    above.add([(310, 3), (320, 4)], is_last=False)
    assert part.is_proven is True
    hiding = Slice(100, Slice(300, first_ids={4}))
    hiding.add([(100, 1), (310, 3)], is_last=False)
    assert hiding.is_proven is False, "the slice above has left out a market"


def test_what_a_run_has_listed_before_proves_no_end_of_what_it_reads_now() -> None:
    resumed = Slice(200, Slice(300, first_ids={1, 2, 3}))
    resumed.add([(200, 1), (210, 2)], is_last=True)
    assert (resumed.is_read, resumed.is_proven) == (True, False), "the market at 300 was listed and is missing here"
    resumed.add([(210, 2), (310, 3)], is_last=False)
    assert resumed.is_proven is True


def test_a_listing_whose_markets_all_start_in_one_second_ends_where_nothing_is_listed_above() -> None:
    markets = [(300, 1), (300, 2)]
    part = Slice(0, topmost(markets))
    part.add(markets, is_last=True)
    assert (part.end, part.is_proven) == (301, True)


def test_a_listing_that_breaks_off_below_markets_that_are_listed_above_proves_nothing() -> None:
    cut_off = Slice(100, Slice(300, first_ids={3}))
    cut_off.add([(100, 1), (200, 2)], is_last=True)
    assert (cut_off.is_read, cut_off.is_proven) == (True, False)
    empty_above = Slice(100, Slice(300, first_ids=()))
    empty_above.add([(100, 1), (200, 2)], is_last=True)
    assert empty_above.is_proven is True


def test_a_burst_of_markets_is_not_taken_for_the_density_of_what_follows() -> None:
    part = Slice(0, Slice(10_000_000, None, 0.0001, 0.0001))
    part.add([(1_000_000, id_) for id_ in range(100)], is_last=False)
    assert part.density == MAX_DENSITY
    part.add([(1_000_000 + 10_000 * id_, id_) for id_ in range(100)], is_last=False)
    assert part.density < 0.001
