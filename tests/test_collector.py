"""covers: a run from end to end: every stored value is one that the stand-in really sent, with few requests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows
from truth import T0, by_id, failures, stored_markets, stored_snapshots, true_market, true_snapshot

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakePolymarket


async def test_every_column_of_thousands_of_markets_is_right(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(2_940):
        exchange.add_market()
    for _ in range(30):
        exchange.add_market(active=False, gamma_price=None, has_books=False)
    collector = make_collector(min_volume=0)
    collector.gamma_limiter.max_requests = 1_000  # so that the clock stands still
    result = await collector.collect_all()
    markets = by_id([market for market in exchange.markets.values() if market.active])
    assert len(markets) == 3_000
    sides = {(bool(market.bids), bool(market.asks)) for market in markets}
    assert sides == {(True, True), (True, False), (False, True), (False, False)}, "the truth has every kind of book"
    assert stored_snapshots(database) == [true_snapshot(market) for market in markets]
    assert stored_markets(database) == [true_market(market) for market in markets]
    assert failures(database) == []
    assert (result["markets"], result["snapshots"], result["status"]) == (3_000, 3_000, "complete")
    assert len(exchange.asked("/books")) == 12


@pytest.mark.parametrize("over", [1, 60, 99, 100, 101, 250, 251])
async def test_the_default_job_asks_no_more_than_it_must(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, over: int
) -> None:
    """M markets over the threshold: ceil((M + 1) / 100) pages, one more at most, and ceil(2 M / 500) times books."""
    for number, market in enumerate(exchange.markets.values()):
        exchange.change(market, volume_24h=200_000.0 if number < over else 99_999.9)
    for _ in range(over - 60):
        exchange.add_market(volume_24h=100_000.0)
    for _ in range(120):
        exchange.add_market(volume_24h=5.0)
    result = await collector.collect_all()
    wanted = [market for market in exchange.markets.values() if (market.volume_24h or 0) >= 100_000]
    assert stored_snapshots(database) == [true_snapshot(market) for market in by_id(wanted)]
    assert result["markets"] == over
    assert len(exchange.asked("/markets/keyset")) <= math.ceil((over + 1) / 100) + 1
    assert len(exchange.asked("/books")) == math.ceil(2 * over / 500)
    assert result["requests"] == len(exchange.arrivals)


async def test_a_run_leaves_its_account(exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path) -> None:
    exchange.fail_next("/books", status=500)
    exchange.fail_next("/markets/keyset", status=429)
    result = await collector.collect_all()
    (run,) = rows(database, "SELECT * FROM runs")
    assert run == {
        "run_id": 1,
        "started_at": T0,
        "finished_at": "2026-11-22 14:15:02",
        "status": "complete",
        "markets_listed": 60,
        "snapshots_saved": 60,
        "books_missing": 0,
        "tweets": 0,
        "requests": 5,
        "retries": 2,
        "rate_limit_hits": 1,
        "errors": 0,
        "listing": "top",
        "full_walk_at": None,
        "follow": 1,
        "duration": 2.0,
        "min_volume": 100_000.0,
        "version": ac.__version__,
        "newest_tweet_id": None,
        "tweets_complete": None,
        "selection_id": None,
        "depth": None,
        "books_saved": 60,
        "books_unchanged": 0,
        "unmirrored": 0,
    }
    assert result == {
        "markets": 60,
        "snapshots": 60,
        "tweets": 0,
        "duration": 2.0,
        "stats": {
            "markets_fetched": 60,
            "snapshots_saved": 60,
            "tweets_fetched": 0,
            "errors": 0,
            "retries": 2,
            "rate_limit_hits": 1,
        },
        "run_id": 1,
        "status": "complete",
        "books_missing": 0,
        "books_saved": 60,
        "books_unchanged": 0,
        "unmirrored": 0,
        "reason": None,
        "drift": None,
        "tweets_reason": None,
        "notes": [],
        "unknown": [],
        "requests": 5,
        "database": str(database),
    }


async def test_two_runs_in_a_row_are_two_rows_per_market(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    await collector.collect_all()
    second = await collector.collect_all()
    markets = by_id(list(exchange.markets.values()))
    assert second["snapshots"] == 60
    assert stored_snapshots(database, 1) == [true_snapshot(market, 1) for market in markets]
    later = "2026-11-22 14:15:01"  # the second run waited for a second of its own
    assert stored_snapshots(database, 2) == [true_snapshot(market, 2, later) for market in markets]
    assert rows(database, "SELECT count(*) AS n, count(DISTINCT first_seen) AS firsts FROM markets") == [
        {"n": 60, "firsts": 1}
    ]


async def test_a_threshold_above_everything_is_a_complete_run_of_nothing(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    assert exchange.url
    result = await make_collector(min_volume=1e12).collect_all()
    assert (result["markets"], result["status"]) == (0, "complete")


async def test_a_market_that_comes_twice_is_stored_once(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    """In the order of volume a market can move from one page to the next during the walk."""
    for _ in range(90):
        exchange.add_market(volume_24h=200_000.0)

    def repeat_last(page: dict[str, Any]) -> dict[str, Any]:
        return page | {"markets": [page["markets"][-1], *page["markets"]]}

    exchange.fail_next("/markets/keyset", times=9, mutate=repeat_last)
    result = await collector.collect_all()
    assert (result["markets"], result["stats"]["errors"]) == (150, 0)
    assert len(stored_snapshots(database)) == 150


async def test_markets_without_a_volume_come_after_the_others(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    for _ in range(40):
        exchange.add_market(volume_24h=200_000.0)
    for _ in range(150):
        exchange.add_market(volume_24h=None)
    result = await collector.collect_all()
    assert (result["markets"], result["status"]) == (100, "complete")
