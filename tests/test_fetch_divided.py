"""covers: HttpHost.fetch_divided, what is learnt from requests that fail and who pays for a key at fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fake_polymarket import FakePolymarket

    import async_collector as ac


@pytest.fixture
async def api(collector: ac.AsyncCollector) -> AsyncIterator[ac.PolymarketApi]:
    """The API as a run of `collector` uses it."""
    async with collector.connect() as (_, api):
        yield api


@pytest.fixture
def tokens(exchange: FakePolymarket) -> list[str]:
    """The 120 tokens of the exchange."""
    return [token for market in exchange.markets.values() for token in market.tokens]


def sizes(exchange: FakePolymarket) -> list[int]:
    """Return how many tokens each request for books had since the last call."""
    found = [arrival.tokens for arrival in exchange.asked("/books")]
    exchange.arrivals.clear()
    return found


async def test_the_size_that_was_in_time_is_learnt_from_requests_that_were_too_slow(
    api: ac.PolymarketApi, exchange: FakePolymarket, tokens: list[str]
) -> None:
    exchange.odd.tokens_in_time = 40
    books, problems = await api.fetch_books(tokens)
    assert (set(books), problems) == (set(tokens), {})
    assert sizes(exchange)[-4:] == [30, 30, 30, 30]
    books, problems = await api.fetch_books(tokens)
    assert (set(books), problems) == (set(tokens), {})
    assert sizes(exchange) == [30, 30, 30, 30]


async def test_the_size_that_was_refused_is_learnt_although_a_key_is_at_fault(
    api: ac.PolymarketApi, exchange: FakePolymarket, tokens: list[str]
) -> None:
    exchange.odd.poisoned = {tokens[7]: 400}
    exchange.fail_next("/books", status=413, body=b"")
    books, problems = await api.fetch_books(tokens)
    assert (set(books), set(problems)) == ({*tokens} - {tokens[7]}, {tokens[7]})
    exchange.odd.poisoned = {}
    sizes(exchange)
    await api.fetch_books(tokens)
    assert sizes(exchange) == [60, 60]


async def test_a_key_at_fault_makes_no_later_request_smaller(
    api: ac.PolymarketApi, exchange: FakePolymarket, tokens: list[str]
) -> None:
    exchange.odd.poisoned = {tokens[7]: 500}
    _, problems = await api.fetch_books(tokens)
    assert problems.keys() == {tokens[7]}
    exchange.odd.poisoned = {}
    sizes(exchange)
    await api.fetch_books(tokens)
    assert sizes(exchange) == [120]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at_fault=st.sets(st.integers(0, 119), max_size=3), status=st.sampled_from([400, 404, 500, 503]))
async def test_every_key_has_one_answer_and_only_those_at_fault_have_none(
    make_collector: type[ac.AsyncCollector],
    exchange: FakePolymarket,
    tokens: list[str],
    at_fault: set[int],
    status: int,
) -> None:
    bad = {tokens[place] for place in at_fault - {0, 119}}  # with one of the ends at fault it may be an outage
    exchange.odd.poisoned = dict.fromkeys(bad, status)
    async with make_collector().connect() as (_, api):
        books, problems = await api.fetch_books(tokens)
    assert (set(books), set(problems)) == (set(tokens) - bad, bad)
